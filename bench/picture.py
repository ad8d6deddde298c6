# SPDX-License-Identifier: Apache-2.0
"""The comparison with the reference as an SVG: speed as a multiple of the reference's, memory as a share of it."""

from xml.sax.saxutils import escape

LABEL, BAR, ROW = 250, 300, 34  # widths and a row's height, in pixels
GREY, GREEN = "#9aa0a6", "#188038"


def panel(title, values, unit, left):
    """Bars of `values` beside a grey line at 1, the reference."""
    scale = BAR / max(1.0, *values) * 0.8
    parts = [f'<text x="{left}" y="22" class="title">{escape(title)}</text>']
    for index, value in enumerate(values):
        y = 40 + ROW * index
        parts.append(f'<rect x="{left}" y="{y}" width="{value * scale:.1f}" height="{ROW - 12}" fill="{GREEN}"/>')
        parts.append(f'<text x="{left + value * scale + 6:.1f}" y="{y + 16}">{value:{unit}}</text>')
    bottom = 40 + ROW * len(values)
    parts.append(f'<line x1="{left + scale:.1f}" x2="{left + scale:.1f}" y1="34" y2="{bottom}" stroke="{GREY}"/>')
    parts.append(f'<text x="{left + scale + 4:.1f}" y="{bottom + 12}" fill="{GREY}">the reference</text>')
    return parts


def svg(rows):
    """`rows`: (label, result with ratio and memories)."""
    height = 64 + ROW * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABEL + 2 * BAR + 80}" height="{height}" font-family="sans-serif" '
        'font-size="13"><style>.title{font-weight:bold}text{fill:#5f6368}</style>'
    ]
    for index, (label, _) in enumerate(rows):
        parts.append(f'<text x="{LABEL - 10}" y="{56 + ROW * index}" text-anchor="end">{escape(label)}</text>')
    parts += panel("tokens per second, times the reference's", [result["ratio"] for _, result in rows], ".2f", LABEL)
    shares = [result["fettle_memory"] / result["reference_memory"] for _, result in rows]
    parts += panel("peak memory, share of the reference's", shares, ".0%", LABEL + BAR + 40)
    return "\n".join([*parts, "</svg>", ""])

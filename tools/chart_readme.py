#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the chart's README.md: its head, and a table made of the `# --` comments of values.yaml (helm-docs' form).

    chart_readme.py [--check]      --check writes nothing, and fails if the file is not current or a value lacks a comment
"""

import pathlib
import re
import sys

CHART = pathlib.Path(__file__).resolve().parent.parent / "deploy/chart"
HEAD = """<!-- Made by tools/chart_readme.py from values.yaml; edit that. -->
# Fettle's Helm chart

Fine-tunes a large language model (LoRA or full) on CPUs, NVIDIA GPUs or Intel Gaudi: one `helm install` from a model's name to a tuned, verified
adapter on a volume. [docs/kubernetes.md](../../docs/kubernetes.md) is the guide; `deploy/values/` has examples.

```
make image                             # localhost/fettle:0.1.0-cpu; then push it, or load it into the nodes
helm install my-run deploy/chart -f deploy/values/example.yaml --set image.repository=localhost/fettle
```

Helm 3 and 4, Kubernetes 1.29 or newer. Needs no operator with `kind: Job`. Values are checked by `values.schema.json`, which holds the program's
own options under `config`.

"""


def entries(lines):
    """Yields (path, type, default, text) for every value that has a `# --` comment; SystemExit names one without."""
    stack = []  # (indentation, key, documented)
    comment, default = None, None
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        indentation = len(line) - len(line.lstrip())
        if stripped.startswith("# -- "):
            comment, default = stripped[5:], None
            continue
        if stripped.startswith("# @default -- "):
            default = stripped[len("# @default -- ") :]
            continue
        if stripped.startswith("#"):
            comment = f"{comment} {stripped[2:]}" if comment else None
            continue
        match = re.match(r"^ *([A-Za-z0-9]+):(?: (.*))?$", line)
        if not match:
            if not stripped:
                comment = None
            continue
        while stack and stack[-1][0] >= indentation:
            stack.pop()
        key, value = match.group(1), match.group(2)
        inside_documented = any(entry[2] for entry in stack)
        path = ".".join([entry[1] for entry in stack] + [key])
        stack.append((indentation, key, comment is not None))
        if comment is not None:
            yield path, value, default, comment
        elif value is not None and not inside_documented:
            sys.exit(f"values.yaml:{number}: {path} has no `# --` comment")
        comment, default = None, None


def shown(value, default):
    if default is not None:
        return default
    return f"`{value}`" if value not in (None, '""') else '`""`'


def render():
    lines = (CHART / "values.yaml").read_text(encoding="utf-8").splitlines()
    rows = ["| value | default | meaning |", "|---|---|---|"]
    for path, value, default, comment in entries(lines):
        rows.append(f"| `{path}` | {shown(value, default)} | {comment.replace('|', chr(92) + '|')} |")
    return HEAD + "\n".join(rows) + "\n"


def main():
    readme = CHART / "README.md"
    if sys.argv[1:] == ["--check"]:
        if not readme.exists() or readme.read_text(encoding="utf-8") != render():
            sys.exit(f"{readme} is not current: run tools/chart_readme.py")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        readme.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()

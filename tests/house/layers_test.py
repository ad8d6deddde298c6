# SPDX-License-Identifier: Apache-2.0
"""Holds the one direction of includes between rooms (docs/architecture.md), and the narrow includes of libtorch."""

import pathlib
import re
import sys

ALLOWED = {
    "base": set(),
    "config": {"base"},
    "device": {"base", "config"},
    "dist": {"base", "config", "device"},
    "text": {"base"},
    "hub": {"base", "config"},
    "ops": {"base"},
    "data": {"base", "config", "text", "hub"},
    "model": {"base", "config", "ops", "hub"},
    "quantize": {"base", "config", "ops", "hub", "data", "model"},
    "train": {"base", "config", "device", "dist", "text", "hub", "ops", "data", "model"},
    "cli": {"base", "config", "device", "dist", "text", "hub", "ops", "data", "model", "quantize", "train"},
}
WITHOUT_TORCH = {"base", "config", "text", "hub", "data"}
TOO_WIDE = re.compile(r"<(torch/torch\.h|torch/extension\.h|torch/all\.h|ATen/ATen\.h|ATen/Functions\.h)>")
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]', re.MULTILINE)


def violations(source: pathlib.Path, room: str):
    """Yields one sentence for each include of `source` that its room may not have."""
    text = source.read_text()
    for wide in TOO_WIDE.findall(text):
        yield f"includes {wide}: include ATen/core/Tensor.h and single ATen/ops/*.h"
    for quote, path in INCLUDE.findall(text):
        first = path.split("/")[0]
        if quote == "<":
            if room in WITHOUT_TORCH and first in {"ATen", "c10", "torch"}:
                yield f"includes <{path}>, but {room} is free of libtorch"
        elif first not in ALLOWED:
            yield f'includes "{path}": write the path from src/ on'
        elif first != room and first not in ALLOWED[room]:
            yield f"includes {path}, but {room} may include only {sorted(ALLOWED[room])}"


def main(root: pathlib.Path) -> int:
    sources = [path for path in sorted((root / "src").rglob("*")) if path.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    found = 0
    for source in sources:
        room = source.relative_to(root / "src").parts[0]
        if room not in ALLOWED:
            print(f"{source}: unknown room {room}")
            found += 1
            continue
        for sentence in violations(source, room):
            print(f"{source.relative_to(root)}: {sentence}")
            found += 1
    print(f"{len(sources)} files, {found} violations")
    return 1 if found or not sources else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))

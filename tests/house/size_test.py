# SPDX-License-Identifier: Apache-2.0
"""Holds the ceilings: 500 lines a file, 60 lines a function, 5 parameters a function."""

import ast
import pathlib
import re
import subprocess
import sys

FILE_LINES, FUNCTION_LINES, PARAMETERS = 500, 60, 5
CPP_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
FOLDERS = ["src", "tests", "rust/src", "bench", "tools", "deploy"]
# A C++ function's body opens on a line that ends with "{" at namespace or class level and closes with "}" at the same indent.
CPP_OPENING = re.compile(
    r"^\s*(?!namespace|class|struct|enum|union|extern|if|for|while|switch|else|do|try|return)[^#/\s].*[)\w>]\s*\{$"
)
CPP_NOT_FUNCTION = re.compile(r"^\s*(typedef |using |static const(expr)? .*=|const .*=|constexpr |inline const|.*=\s*\{$)")
RUST_OPENING = re.compile(r"^\s*(pub(\([a-z]+\))? )?(unsafe )?(extern \"C\" )?fn .*")


def python_functions(text):
    """Yields (name, first line, lines, parameters) of each function."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            yield node.name, node.lineno, node.end_lineno - node.lineno + 1, len([a for a in arguments if a.arg != "self"])


def parameters(signature):
    """Counts the parameters of the first parenthesis group of a C++ or Rust signature."""
    start = signature.find("(")
    depth, count, seen = 0, 1, False
    for character in signature[start + 1 :]:
        if character == ")" and depth == 0:
            break
        depth += character in "(<[{"
        depth -= character in ")>]}"
        count += character == "," and depth == 0
        seen = seen or not character.isspace()
    return count if seen else 0


def brace_functions(text, opening):
    """As python_functions, for formatted C++ and Rust: a body ends at the first closing brace at its own indent."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        match = opening.match(line)
        if not match or CPP_NOT_FUNCTION.match(line):
            continue
        start = number
        while start > 0 and lines[start - 1].strip() and not re.search(r"[;{}]\s*$|^\s*(//|#|template|\w+:$)", lines[start - 1]):
            start -= 1
        indent = re.match(r"\s*", lines[start])[0]  # of the signature: an initializer list is indented more
        end = next((n for n in range(number + 1, len(lines)) if re.match(rf"^{indent}\}}", lines[n])), number)
        signature = " ".join(part.strip() for part in lines[start : number + 1])
        if signature.startswith("INSTANTIATE_TEST_SUITE_P("):  # a table
            continue
        yield signature[:60], start + 1, end - start + 1, parameters(signature) if "(" in signature else 0


def complaints(path, text):
    if (count := text.count("\n")) > FILE_LINES:
        yield f"{count} lines, at most {FILE_LINES}"
    functions = {".py": python_functions, ".rs": lambda t: brace_functions(t, RUST_OPENING)}.get(path.suffix, lambda t: [])
    if path.suffix in CPP_SUFFIXES:
        functions = lambda t: brace_functions(t, CPP_OPENING)
    for name, line, length, count in functions(text):
        if length > FUNCTION_LINES:
            yield f"line {line}: {name}: {length} lines, at most {FUNCTION_LINES}"
        if count > PARAMETERS and not name.startswith('extern "C"'):  # whose signature another library gives
            yield f"line {line}: {name}: {count} parameters, at most {PARAMETERS}"


def main(root):
    listed = subprocess.run(["git", "ls-files", *FOLDERS], cwd=root, capture_output=True, text=True, check=False).stdout.split()
    names = listed or [str(p.relative_to(root)) for folder in FOLDERS for p in (root / folder).rglob("*") if p.is_file()]
    paths = [root / name for name in names if pathlib.Path(name).suffix in CPP_SUFFIXES | {".py", ".rs", ".sh"}]
    found = 0
    for path in paths:
        for complaint in complaints(path, path.read_text() if path.exists() else ""):
            print(f"{path.relative_to(root)}: {complaint}")
            found += 1
    print(f"{len(paths)} files, {found} over a ceiling")
    return 1 if found or not paths else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))

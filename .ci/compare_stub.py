"""Compare the committed stub of the extension with the extension: ``compare_stub.py BUILD_FOLDER STUB``.

Both are written as one line per name (functions, classes, methods, properties) with argument names,
keyword-only marks and defaults, and the two lists are compared. Types are left to mypy and to the tests:
pybind11 knows an array only as an array.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any


def load_extension(build_folder: Path) -> types.ModuleType:
    found = sorted(build_folder.rglob("_core*.so"))
    if len(found) != 1:
        sys.exit(f"one extension _core*.so wanted under {build_folder}, found {len(found)}")
    spec = importlib.util.spec_from_file_location("fusedlstm._core", found[0])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments_of(arguments: ast.arguments) -> str:
    """Names and defaults: ``a, b=1, *, c=None``; ``self`` is left out."""

    def one(argument: ast.arg, default: ast.expr | None) -> str:
        return argument.arg if default is None else f"{argument.arg}={ast.literal_eval(default)!r}"

    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    parts = [one(a, d) for a, d in zip(positional, defaults, strict=True) if a.arg != "self"]
    if arguments.kwonlyargs:
        parts.append("*")
        parts += [one(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return ", ".join(parts)


def lines_of_stub(path: Path) -> list[str]:
    lines = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            lines.append(node.target.id)
        elif isinstance(node, ast.FunctionDef):
            lines.append(f"{node.name}({arguments_of(node.args)})")
        elif isinstance(node, ast.ClassDef):
            lines.append(f"class {node.name}")
            for member in node.body:
                if not isinstance(member, ast.FunctionDef):
                    continue
                if any(isinstance(d, ast.Name) and d.id == "property" for d in member.decorator_list):
                    lines.append(f"{node.name}.{member.name}")
                else:
                    lines.append(f"{node.name}.{member.name}({arguments_of(member.args)})")
    return sorted(lines)


def line_of_function(prefix: str, name: str, function: Any) -> str:
    signature = (function.__doc__ or "").split("\n", 1)[0]
    try:
        node = ast.parse(f"def {re.sub(r' -> .*$', '', signature)}: ...").body[0]
    except SyntaxError:
        return f"{prefix}{name}: no readable signature in {signature!r}"
    assert isinstance(node, ast.FunctionDef)
    return f"{prefix}{name}({arguments_of(node.args)})"


def lines_of_extension(module: types.ModuleType) -> list[str]:
    lines = ["__version__"] if hasattr(module, "__version__") else []
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if isinstance(value, type):
            lines.append(f"class {name}")
            for member_name, member in vars(value).items():
                if isinstance(member, property):
                    lines.append(f"{name}.{member_name}")
                elif callable(member) and (not member_name.startswith("_") or is_bound(member_name, member)):
                    lines.append(line_of_function(f"{name}.", member_name, member))
        elif callable(value):
            lines.append(line_of_function("", name, value))
        else:
            lines.append(name)
    return sorted(lines)


def is_bound(name: str, member: Any) -> bool:
    """True for a special method that pybind11 bound; inherited ones have no signature."""
    return name in ("__init__", "__len__") and (member.__doc__ or "").startswith(f"{name}(self: ")


def main() -> int:
    module, stub = load_extension(Path(sys.argv[1])), Path(sys.argv[2])
    built, committed = lines_of_extension(module), lines_of_stub(stub)
    difference = list(difflib.unified_diff(committed, built, str(stub), "built extension", lineterm="", n=0))
    print("\n".join(difference) if difference else f"{stub}: {len(built)} names as in the built extension")
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())

"""Options of a class read from its source, so that a shell completes them without importing PyTorch."""

from __future__ import annotations

import ast
import importlib.machinery
import sys
from pathlib import Path

import clframe

__all__ = ["fields_in_source"]


def fields_in_source(target: str) -> dict[str, list[str]]:
    """Return the options of `package.module:Class` or `path/to/file.py:Class`, those of its base classes first.

    Returns:
        The values to choose from, by name; none where any value may be given. Empty where there is no source to read.
    """
    module, _, name = target.rpartition(":")
    file = Path(module).expanduser() if module.endswith(".py") else _file_of(module)
    if file is None:
        return {}
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return {}
    found: dict[str, list[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for base in reversed(node.bases):  # as dataclasses order fields
                found |= fields_in_source(_address(base, tree, module))
            found |= _own(node)
    return found


def _own(node: ast.ClassDef) -> dict[str, list[str]]:
    """The options that a class declares; each has a default, or at least `field(help=...)`."""
    found: dict[str, list[str]] = {}
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
            name, kind = line.target.id, line.annotation
            if not name.endswith("_") and "ClassVar" not in ast.dump(kind):
                found[name] = _choices(kind)
    return found


def _choices(annotation: ast.expr) -> list[str]:
    """What `Literal` and `bool` allow."""
    found: list[str] = []
    for node in ast.walk(annotation):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
            found += [str(c.value) for c in ast.walk(node.slice) if isinstance(c, ast.Constant)]
        elif isinstance(node, ast.Name) and node.id == "bool":
            found += ["true", "false"]
    return found


def _address(base: ast.expr, tree: ast.Module, module: str) -> str:
    """Where a base class is defined, as far as the source says it."""
    if isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name) and base.value.id == "clframe":
        return _of_clframe(base.attr)
    if not isinstance(base, ast.Name):
        return ""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and any(a.name == base.id for a in node.names):
            return _of_clframe(base.id) if node.module == "clframe" else f"{node.module}:{base.id}"
    return f"{module}:{base.id}"


def _of_clframe(name: str) -> str:
    return f"clframe.{clframe._HOME[name]}:{name}" if name in clframe._HOME else ""


def _file_of(module: str) -> Path | None:
    """Find a module's file without importing anything."""
    paths: list[str] | None = None
    parts = module.split(".")
    for number in range(1, len(parts) + 1):
        name = ".".join(parts[:number])
        if number < len(parts) and name in sys.modules:
            paths = list(getattr(sys.modules[name], "__path__", []))
            continue
        spec = importlib.machinery.PathFinder.find_spec(name, paths)
        if spec is None:
            return None
        paths = list(spec.submodule_search_locations or [])
        if number == len(parts) and spec.origin is not None and spec.origin.endswith(".py"):
            return Path(spec.origin)
    return None

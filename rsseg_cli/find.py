"""Finds methods, heads and backbones by name: the one class of its kind in a file."""

from __future__ import annotations

import ast
import importlib
import inspect
from functools import cache
from pathlib import Path
from typing import TypeVar

from rsseg_cli.errors import unknown

T = TypeVar("T")


@cache
def names(package: str) -> tuple[str, ...]:
    """List the public modules of `package` ("methods", "heads", "backbones")."""
    folder = Path(__file__).parent / package
    return tuple(sorted(path.stem for path in folder.glob("*.py") if path.stem[0] != "_"))


@cache
def backbone_names() -> tuple[str, ...]:
    """List every backbone, `family_size`, from the families' files without running them.

    Shell completion uses this: importing torch would take too long.
    """
    found = []
    for family in names("backbones"):
        file = Path(__file__).parent / "backbones" / f"{family}.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "sizes":
                keys = node.value.keys if isinstance(node.value, ast.Dict) else ()
                found += [f"{family}_{ast.literal_eval(key)}" for key in keys if key]
    return tuple(found)


def find(package: str, name: str, kind: type[T], *, where: str = "") -> type[T]:
    """Return the one subclass of `kind` defined in `<package>/<name>.py`.

    Raises:
        RssegError: There is no such file; the nearest names are listed.
    """
    if name not in names(package):
        raise unknown(package.removesuffix("s"), name, names(package), where=where)
    module = importlib.import_module(f"rsseg_cli.{package}.{name}")
    found = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, kind) and member.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} defines {len(found)} of {kind.__name__}, not one")
    return found[0]

"""Finds methods, heads and backbones by name: one class per file."""

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
    """Return the public modules of `package` ("methods", "heads", "backbones")."""
    folder = Path(__file__).parent / package
    return tuple(sorted(path.stem for path in folder.glob("*.py") if path.stem[0] != "_"))


@cache
def backbone_names() -> tuple[str, ...]:
    """Return all backbones, `family_size`, from the syntax trees of the families' files.

    Shell completion uses this, for which importing torch would take too long.
    """
    backbones: list[str] = []
    for family in names("backbones"):
        file = Path(__file__).parent / "backbones" / f"{family}.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "sizes":
                keys = node.value.keys if isinstance(node.value, ast.Dict) else ()
                backbones += [f"{family}_{ast.literal_eval(key)}" for key in keys if key]
    return tuple(backbones)


def find(package: str, name: str, kind: type[T], *, where: str = "") -> type[T]:
    """Return the only subclass of `kind` defined in `<package>/<name>.py`.

    Raises:
        RssegError: There is no such file; the message lists similar names.
    """
    if name not in names(package):
        raise unknown(package.removesuffix("s"), name, names(package), where=where)
    module = importlib.import_module(f"rsseg_cli.{package}.{name}")
    classes = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, kind) and member.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise TypeError(f"{module.__name__} defines {len(classes)} subclasses of {kind.__name__}")
    return classes[0]

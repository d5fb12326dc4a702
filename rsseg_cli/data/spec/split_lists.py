"""Readers of the lists and tables that assign images to splits."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from rsseg_cli.errors import UnreadableError


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file.

    Raises:
        UnreadableError: The file is missing.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UnreadableError(
            f"the list of files cannot be read: {error.strerror}", where=str(path)
        ) from error


@cache
def first_words(path: Path) -> frozenset[str]:
    """Read the first word of each line."""
    return frozenset(line.split()[0] for line in read_lines(path) if line.strip())


@cache
def column(path: Path, key: str, name: str) -> dict[str, str]:
    """Read column `name` of a CSV or of a vector file's attributes, by the values of column `key`.

    Raises:
        UnreadableError: The file is missing or broken, or has no such column.
    """
    import geopandas  # takes a second to import, and few datasets have tables

    try:
        rows = geopandas.read_file(path, ignore_geometry=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UnreadableError(f"the table cannot be read: {error}", where=str(path)) from error
    missing = {key, name} - set(rows.columns)
    if missing:
        raise UnreadableError(
            f"the table has no column {', '.join(sorted(missing))}",
            where=str(path),
            fix=f"one of: {', '.join(map(str, rows.columns))}",
        )
    return dict(zip(rows[key].astype(str), rows[name].astype(str), strict=True))

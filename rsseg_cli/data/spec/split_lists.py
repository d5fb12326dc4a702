"""Reads the lists and tables of datasets that assign images to splits."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from rsseg_cli.errors import UnreadableError


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file.

    Raises:
        UnreadableError: It is missing.
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
    """Read one column of a table by another.

    Args:
        path: A CSV, or the attributes of a vector file.
        key: Column that identifies the rows.
        name: Column to read.

    Raises:
        UnreadableError: The file is missing or broken, or has no such column.
    """
    import geopandas  # a second of import that most datasets do not need

    try:
        rows = geopandas.read_file(path, ignore_geometry=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UnreadableError(f"the table cannot be read: {error}", where=str(path)) from error
    lost = {key, name} - set(rows.columns)
    if lost:
        raise UnreadableError(
            f"the table has no column {', '.join(sorted(lost))}",
            where=str(path),
            fix=f"one of: {', '.join(map(str, rows.columns))}",
        )
    return dict(zip(rows[key].astype(str), rows[name].astype(str), strict=True))

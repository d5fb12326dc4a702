"""Tells whether what is there was made of the same model, input and options."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import rasterio
from rasterio.errors import RasterioError

from rsseg_cli.errors import OutputExistsError


def made_before(path: Path, journal: dict[str, str], overwrite: bool) -> bool:
    """Tell whether a map is there that the same model and options have made of the same scene.

    Raises:
        OutputExistsError: Something else is there.
    """
    if not path.exists():
        return False
    same = _journal_of(path) == journal_digest(journal)
    if not same and not overwrite:
        raise OutputExistsError(
            "the output is there already, of another model, input or options",
            where=str(path),
            fix="--overwrite, or another -o",
        )
    return same


def is_ours(path: Path) -> bool:
    """Tell whether a raster was made by `predict`."""
    return _journal_of(path) is not None


def _journal_of(path: Path) -> str | None:
    """Read the digest that `predict` leaves in a map; None where it has made none of the file."""
    try:
        with rasterio.open(path) as file:
            found: str | None = file.tags().get("rsseg_journal")
            return found
    except RasterioError:
        return None  # no raster, whatever it is


def file_digest(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def journal_digest(journal: dict[str, str]) -> str:
    """Hash what a map depends on."""
    return hashlib.sha256(json.dumps(journal, sort_keys=True).encode()).hexdigest()


def identity(path: str) -> str:
    """Tell a file from one that has been changed; a remote one by its name only."""
    local = Path(path)
    if not local.exists():
        return path
    known = local.stat()
    return f"{local.resolve()}, {known.st_size} bytes, changed {known.st_mtime_ns}"

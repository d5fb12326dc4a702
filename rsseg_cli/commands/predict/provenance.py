"""Provenance of maps: whether an existing one has the same model, input and options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import rasterio
from rasterio.errors import RasterioError

from rsseg_cli.errors import OutputExistsError
from rsseg_cli.predict.outputs import Outputs


def made_before(outputs: Outputs) -> bool:
    """Return whether the class map exists, made with the same model, input and options.

    Raises:
        OutputExistsError: Another file exists and `overwrite` is not set.
    """
    if not outputs.map.exists():
        return False
    same = _journal_of(outputs.map) == journal_digest(outputs.journal or {})
    if not same and not outputs.overwrite:
        raise OutputExistsError(
            "the output exists already, of another model, input or options",
            where=str(outputs.map),
            fix="--overwrite, or another -o",
        )
    return same


def is_ours(path: Path) -> bool:
    """Return whether a raster was made by `predict`."""
    return _journal_of(path) is not None


def _journal_of(path: Path) -> str | None:
    """Read the digest that `predict` writes into a map; None for other files."""
    try:
        with rasterio.open(path) as file:
            digest: str | None = file.tags().get("rsseg_journal")
            return digest
    except RasterioError:
        return None  # not a raster


def file_digest(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def journal_digest(journal: Mapping[str, str]) -> str:
    """Compute the SHA-256 of what a map depends on."""
    return hashlib.sha256(json.dumps(dict(journal), sort_keys=True).encode()).hexdigest()


def identity(path: str) -> str:
    """Return what changes with a file: its path, size and time; only the name of a remote one."""
    local = Path(path)
    if not local.exists():
        return path
    stat = local.stat()
    return f"{local.resolve()}, {stat.st_size} bytes, changed {stat.st_mtime_ns}"

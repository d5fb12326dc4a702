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


def is_complete(outputs: Outputs) -> bool:
    """Return whether the class map exists and has the same dependencies.

    Raises:
        OutputExistsError: Another file exists and `overwrite` is not set.
    """
    if not outputs.map.exists():
        return False
    same = _read_digest(outputs.map) == dependencies_digest(outputs.dependencies or {})
    if not same and not outputs.overwrite:
        raise OutputExistsError(
            "the output exists already, written with another model, input or options",
            where=str(outputs.map),
            fix="--overwrite, or another -o",
        )
    return same


def is_map(path: Path) -> bool:
    """Return whether a file is a map that `predict` has written."""
    return _read_digest(path) is not None


def _read_digest(path: Path) -> str | None:
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


def dependencies_digest(dependencies: Mapping[str, str]) -> str:
    """Compute the SHA-256 of the dependencies of a map."""
    return hashlib.sha256(json.dumps(dict(dependencies), sort_keys=True).encode()).hexdigest()


def file_identity(path: str) -> str:
    """Return path, size and modification time of a file; of a remote one only the path."""
    local = Path(path)
    if not local.exists():
        return path
    stat = local.stat()
    return f"{local.resolve()}, {stat.st_size} bytes, changed {stat.st_mtime_ns}"

"""Checkpoint files: the model, small and self-contained, and the resume state."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rsseg_cli.atomic_write import atomic_path, write_errors
from rsseg_cli.classes import Class, classes_from_json
from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.settings import Json

FORMAT = 1
"""Version of the model file; a file with a larger one is refused."""
FIX = "free some space, then run again with --resume; or another folder (-o)"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path`; see `atomic_write.atomic_path`.

    Raises:
        RssegError: The disk is full or the folder cannot be written.
    """
    with write_errors(path.name, path, FIX), atomic_path(path) as temporary:
        yield temporary


def save_model(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Json]) -> None:
    """Write a model file: tensors, and metadata as JSON in the header."""
    header = {"rsseg": json.dumps({"format": FORMAT} | metadata)}
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(packed, temporary, metadata=header)
        except SafetensorError as error:  # wraps the OSError of a full disk
            number = errno.ENOSPC if "No space left" in str(error) else errno.EIO
            raise OSError(number, str(error)) from error


def load_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a model file.

    Raises:
        UnreadableError: The file is missing, truncated, or not written by rsseg.
        RssegError: The file was written by a newer rsseg.
    """
    if not path.is_file():
        raise UnreadableError(
            f"{path} does not exist", where=str(path), fix="a run folder or its model.safetensors"
        )
    try:
        with safe_open(path, framework="pt") as stream:
            header = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UnreadableError(
            f"{path.name} is not a model file: {error}", where=str(path), fix="fit the model again"
        ) from error
    if "rsseg" not in header:
        raise UnreadableError(
            f"{path.name} was not written by rsseg",
            where=str(path),
            fix="model.safetensors of a run; use --weights for a pretrained backbone",
        )
    metadata: dict[str, Any] = json.loads(header["rsseg"])
    if metadata["format"] > FORMAT:
        raise RssegError(
            f"{path.name} has format {metadata['format']}, this rsseg reads up to {FORMAT}",
            where=str(path),
            fix="pip install --upgrade rsseg-cli",
        )
    return tensors, metadata


def model_classes(metadata: Mapping[str, Any], path: Path) -> list[Class]:
    """Return the classes of a model file.

    Raises:
        UnreadableError: The metadata have no list of classes with valid, unique ids.
    """
    try:
        return classes_from_json(metadata.get("classes"))
    except ValueError as error:
        raise UnreadableError(
            f"the classes of {path.name} cannot be read: {error}",
            where=str(path),
            fix="an unchanged copy of the file, or fit the model again",
        ) from error


def save_resume(path: Path, state: dict[str, Any]) -> None:
    """Write the resume state."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        try:
            torch.save(state, stream)
        except RuntimeError as error:  # torch's zip writer raises it when the disk is full
            raise OSError(errno.ENOSPC, str(error)) from error


def load_resume(path: Path) -> dict[str, Any]:
    """Read the resume state.

    Raises:
        UnreadableError: The file is missing or damaged.
    """
    if not path.is_file():
        raise UnreadableError(
            "there is nothing to resume: resume.pt is missing",
            where=str(path.parent),
            fix="the folder of an interrupted run; a finished one has none",
        )
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise UnreadableError(
            f"resume.pt is damaged: {error}", where=str(path), fix="start the run again"
        ) from error
    return state

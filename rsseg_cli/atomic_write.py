"""Atomic writes, and errors that name the file which could not be written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rsseg_cli.errors import RssegError

FIX = "free space, or write permission, in that folder"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that is renamed to `path` at the end of the block.

    After an exception nothing is renamed and the temporary file is removed. The temporary file of
    a killed process is overwritten.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file atomically; its folder is created if only that is missing."""
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as part:
        part.write_bytes(content)


@contextmanager
def write_errors(
    what: str, path: Path, fix: str = FIX, *, kinds: tuple[type[Exception], ...] = (OSError,)
) -> Iterator[None]:
    """Raise an `RssegError` for exceptions of these kinds inside the block.

    Args:
        what: The content, with its article.
        path: The file or folder.
        fix: A possible solution.
        kinds: Exceptions of the library that writes.
    """
    try:
        yield
    except kinds as error:
        raise RssegError(
            f"{what} cannot be written: {_reason(error)}", where=str(path), fix=fix
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error.__cause__ or error).splitlines()
    return lines[0] if lines else type(error).__name__

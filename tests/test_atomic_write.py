"""A file is complete or absent, and a failure names the file."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from rsseg_cli.atomic_write import atomic_path, write_bytes, write_errors
from rsseg_cli.errors import RssegError


def test_a_failure_keeps_the_old_file_and_leaves_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")

    def fail() -> None:
        with atomic_path(path) as part:
            part.write_bytes(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
        (ValueError("odd\nand long"), "odd"),
    ],
)
def test_errors_name_the_reason_and_the_file(error: Exception, reason: str) -> None:
    with (
        pytest.raises(RssegError) as caught,
        write_errors("the map", Path("a.tif"), kinds=(OSError, ValueError)),
    ):
        raise error
    assert caught.value.what == f"the map cannot be written: {reason}"
    assert caught.value.where == "a.tif"

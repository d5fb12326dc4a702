"""Resume state of an unfinished map: its parts, and the inputs that it depends on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

from rsseg_cli.atomic_write import write_bytes
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.grid import Window

STATE_FILE = "resume.json"
"""File name of the state in the folder of the parts."""
TIMEOUT_S, POLL_S = 30.0, 0.05
"""Longest wait for a file of another machine on a shared file system, and polling interval."""


@dataclass(frozen=True)
class ResumeState:
    """State with which a map was begun.

    Attributes:
        parts: Windows of the map that are written one by one.
        batch: Tiles per call of the model, since another number may change the last bits of scores.
        dependencies: Values on which the map depends, by name.
    """

    parts: tuple[Window, ...]
    batch: int = 1
    dependencies: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the state into the folder of the parts."""
        parts = [astuple(part) for part in self.parts]
        state = {"dependencies": dict(self.dependencies), "parts": parts, "batch": self.batch}
        write_bytes(folder / STATE_FILE, json.dumps(state).encode())

    def require_same(self, other: ResumeState, path: Path) -> None:
        """Check that this state and that of a new run belong to the same map.

        Raises:
            RssegError: Dependencies or parts differ.
        """
        before, now = self.dependencies, other.dependencies
        for key in sorted({**before, **now}):
            if before.get(key) != now.get(key):
                raise RssegError(
                    f"cannot resume: {key} was {before.get(key)}, now it is {now.get(key)}",
                    where=str(path),
                    fix="the same model, input and options as before, or no --resume",
                )
        if self.parts != other.parts:
            raise RssegError(
                "cannot resume: the map was begun in other parts",
                where=str(path),
                fix="omit --resume to start again",
            )


def parts_folder(path: Path) -> Path:
    """Return the folder for the parts of a map."""
    return path.parent / f".{path.name}.parts"


def read_resume_state(path: Path) -> ResumeState | None:
    """Read the state of an unfinished map; None if it was not begun.

    Raises:
        RssegError: The file is damaged or of another format.
    """
    file = parts_folder(path) / STATE_FILE
    if not file.is_file():
        return None
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        parts = tuple(Window(*numbers) for numbers in state["parts"])
        return ResumeState(parts, state["batch"], state["dependencies"])
    except (ValueError, KeyError, TypeError) as error:
        raise RssegError(
            "cannot resume: the state of the earlier run cannot be read",
            where=str(file),
            fix="omit --resume to start again",
        ) from error


def wait_for(files: Sequence[Path]) -> None:
    """Wait until files of other processes are visible on a shared file system.

    Raises:
        FileNotFoundError: A file is still missing after `TIMEOUT_S`.
    """
    deadline = time.monotonic() + TIMEOUT_S
    for file in files:
        while not _is_visible(file):
            if time.monotonic() > deadline:
                raise FileNotFoundError(f"{file.name} is missing: processes must share the folder")
            time.sleep(POLL_S)


def _is_visible(file: Path) -> bool:
    """Return whether a file exists; listing its folder refreshes a stale file system cache."""
    return file.is_file() or (file.parent.is_dir() and file in file.parent.iterdir())

"""Resume state of an unfinished map, beside its parts."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

from rsseg_cli.errors import RssegError
from rsseg_cli.raster.grid import Window

JOURNAL = "journal.json"
"""Name of its file."""
SHARED_S, LOOK_S = 30.0, 0.05
"""Seconds to wait until files of another machine are visible, and between two looks."""


@dataclass(frozen=True)
class Begun:
    """Parts, batch and provenance of a map that a run has begun.

    Attributes:
        parts: Windows that are finished one by one.
        batch: Tiles per call of the model; another number may change the last bits of a score.
        journal: What the map depends on.
    """

    parts: tuple[Window, ...]
    batch: int
    journal: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it into the folder of the parts."""
        parts = [astuple(part) for part in self.parts]
        state = {"journal": dict(self.journal), "parts": parts, "batch": self.batch}
        draft = folder / f"{JOURNAL}.tmp"
        draft.write_text(json.dumps(state))
        draft.replace(folder / JOURNAL)

    def refuse_changes(
        self, journal: Mapping[str, str], parts: Sequence[Window], path: Path
    ) -> None:
        """Refuse to continue the map `path` if it would become another one.

        Raises:
            RssegError: What it depends on has changed, or the parts have.
        """
        before = self.journal
        for key in sorted({**before, **journal}):
            if before.get(key) != journal.get(key):
                raise RssegError(
                    f"cannot resume: {key} was {before.get(key)}, now it is {journal.get(key)}",
                    where=str(path),
                    fix="the same model, input and options as before, or start anew without "
                    "--resume",
                )
        if self.parts != tuple(parts):
            raise RssegError(
                "cannot resume: the map was begun in other parts",
                where=str(path),
                fix="leave --resume out to start anew",
            )


def parts_folder(path: Path) -> Path:
    """Return the folder of the parts of a map."""
    return path.parent / f".{path.name}.parts"


def read_begun(path: Path) -> Begun | None:
    """Read the resume state of a map; None without one.

    Raises:
        RssegError: It is damaged, or of another release.
    """
    file = parts_folder(path) / JOURNAL
    if not file.is_file():
        return None
    try:
        state = json.loads(file.read_text())
        parts = tuple(Window(*numbers) for numbers in state["parts"])
        return Begun(parts, state["batch"], state["journal"])
    except (ValueError, KeyError, TypeError) as error:
        raise RssegError(
            "cannot resume: the state of the earlier run cannot be read",
            where=str(file),
            fix="leave --resume out to start anew",
        ) from error


def wait_for(files: Sequence[Path]) -> None:
    """Wait until files are visible, which may take a while on a shared file system.

    Raises:
        FileNotFoundError: One does not become visible.
    """
    until = time.monotonic() + SHARED_S
    for file in files:
        while not _is_visible(file):
            if time.monotonic() > until:
                raise FileNotFoundError(f"no {file.name}; do all processes share the folder?")
            time.sleep(LOOK_S)


def _is_visible(file: Path) -> bool:
    """Look for a file, also in its folder: a file system may cache that a name was missing."""
    return file.is_file() or (file.parent.is_dir() and file in file.parent.iterdir())

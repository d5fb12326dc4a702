"""What an unfinished map leaves beside its parts: how it was begun, and what it depends on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

from rsseg_cli.errors import RssegError
from rsseg_cli.raster.grid import Window

JOURNAL = "journal.json"
"""Name of the file that says it."""
SHARED_S, LOOK_S = 30.0, 0.05
"""How long what one machine has written may take to be seen by another; how often it looks."""


@dataclass(frozen=True)
class Begun:
    """How a map was begun.

    Attributes:
        parts: Windows that are finished one by one.
        batch: Tiles per call of the model: other numbers may change the last bits of a score.
        journal: What the map depends on.
    """

    parts: tuple[Window, ...]
    batch: int
    journal: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Put it into the folder of the parts."""
        parts = [astuple(part) for part in self.parts]
        state = {"journal": dict(self.journal), "parts": parts, "batch": self.batch}
        draft = folder / f"{JOURNAL}.tmp"
        draft.write_text(json.dumps(state))
        draft.replace(folder / JOURNAL)

    def refuse_changes(
        self, journal: Mapping[str, str], parts: Sequence[Window], path: Path
    ) -> None:
        """Refuse to go on with the map in `path` when it would be another one.

        Raises:
            RssegError: It depends on something else now, or would be made in other parts.
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
    """Name the folder of the parts of a map."""
    return path.parent / f".{path.name}.parts"


def read_begun(path: Path) -> Begun | None:
    """Tell how an unfinished run has begun a map, None when there is none.

    Raises:
        RssegError: What it left is broken, or of a release that wrote it in another way.
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
            "cannot resume: what the earlier run left cannot be read",
            where=str(file),
            fix="leave --resume out to start anew",
        ) from error


def wait_for(files: Sequence[Path]) -> None:
    """Wait for files that are there: on a shared file system it may take a while to see them.

    Raises:
        FileNotFoundError: One stays away.
    """
    until = time.monotonic() + SHARED_S
    for file in files:
        while not _seen(file):
            if time.monotonic() > until:
                raise FileNotFoundError(f"no {file.name}; do all processes share the folder?")
            time.sleep(LOOK_S)


def _seen(file: Path) -> bool:
    """Look for a file; by a list, as a file system may remember that a name was not there."""
    return file.is_file() or (file.parent.is_dir() and file in file.parent.iterdir())

"""The time that a batch queue gives a run: it must have come to rest before that is over."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rsseg_cli.errors import RssegError

Work = Literal["step", "validation", "save"]

SPARE = 1.5
"""What is still to do may take this much longer than it ever has."""
MARGIN, MOST_MARGIN_S = 0.05, 30.0
"""Part of the time that stays unused beside that, and its limit in seconds."""
SLOW_DISK = 50e6
"""Bytes per second at which a state is written, as long as none was."""

_UNITS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)")


class Deadline:
    """Knows how much time is left, and how long each kind of work has taken at most.

    Args:
        seconds: From now on; infinite when nothing ends the run.
        now: A clock in seconds.
    """

    def __init__(
        self, seconds: float = math.inf, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._now = now
        self._ends = now() + seconds
        self._margin = min(MARGIN * seconds, MOST_MARGIN_S)
        self._longest: dict[Work, float] = {}

    @classmethod
    def parse(cls, text: str | None) -> Deadline:
        """Read what `--max-time` says: `8h`, `1h30m`, `HH:MM:SS` or `D-HH:MM:SS`.

        Raises:
            RssegError: It is no time, or none at all.
        """
        if text is None:
            return cls()
        found = _UNITS.fullmatch(text.strip()) or _CLOCK.fullmatch(text.strip())
        parts = found.groups("0") if found else ("0",) * 4
        days, hours, minutes, seconds = map(int, parts)
        total = ((24 * days + hours) * 60 + minutes) * 60 + seconds
        if not total:
            raise RssegError(
                f"{text} is not an amount of time",
                where="--max-time",
                fix="8h, 90m, 1h30m, HH:MM:SS or D-HH:MM:SS",
            )
        return cls(total)

    def subtract(self, seconds: float) -> None:
        """Shorten the time left by time that has passed before this object was made."""
        self._ends -= seconds

    @contextmanager
    def timing(self, work: Work, *, usual: bool = True) -> Iterator[None]:
        """Remember how long this takes if it is the longest of its kind, and no exception."""
        started = self._now()
        yield
        if usual:
            self.expect(work, self._now() - started)

    def expect(self, work: Work, seconds: float) -> None:
        """Take into account that some work may take so long."""
        self._longest[work] = max(seconds, self._longest.get(work, 0.0))

    def expect_state(self, size: int) -> None:
        """Take into account that a state of so many bytes is to be written."""
        self.expect("save", size / SLOW_DISK)

    def near(self, *coming: Work) -> bool:
        """Say whether there is not enough time left for what would come next."""
        needed = sum(self._longest.get(work, 0.0) for work in coming)
        return self._ends - self._now() < SPARE * needed + self._margin

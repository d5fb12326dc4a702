"""Stops a run before the time limit of a batch queue."""

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
"""Factor on the longest duration so far of the work that is still to do."""
MARGIN, MOST_MARGIN_S = 0.05, 30.0
"""Fraction of the limit that is kept free beside that, and its maximum in seconds."""
SLOW_DISK = 50e6
"""Assumed bytes per second for writing a state, until one was written."""

_UNITS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)")


class Deadline:
    """Remaining time, and the longest duration so far of each kind of work.

    Args:
        seconds: From now on; infinite without a limit.
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
        """Parse `--max-time`: `8h`, `1h30m`, `HH:MM:SS` or `D-HH:MM:SS`.

        Raises:
            RssegError: It is not a time, or 0.
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
        """Measure the work in this block; `usual` is False for one that does not count."""
        started = self._now()
        yield
        if usual:
            self.expect(work, self._now() - started)

    def expect(self, work: Work, seconds: float) -> None:
        """Expect some work to take at least so long."""
        self._longest[work] = max(seconds, self._longest.get(work, 0.0))

    def expect_state(self, size: int) -> None:
        """Expect a state of so many bytes to be written."""
        self.expect("save", size / SLOW_DISK)

    def near(self, *coming: Work) -> bool:
        """Return True if the remaining time is too short for the coming work."""
        needed = sum(self._longest.get(work, 0.0) for work in coming)
        return self._ends - self._now() < SPARE * needed + self._margin

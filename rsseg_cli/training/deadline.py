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
"""Safety factor on the longest duration so far."""
MARGIN, MAX_MARGIN_S = 0.05, 30.0
"""Fraction of the time limit that is kept free in addition, and its maximum in seconds."""
SLOW_DISK = 50e6
"""Assumed bytes per second for writing the first resume state."""

_UNITS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)")


class Deadline:
    """Tracks the remaining time and the longest duration so far of each kind of work.

    Args:
        seconds: Time limit from now on; infinite without a limit.
        now: A clock in seconds.
    """

    def __init__(
        self, seconds: float = math.inf, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._now = now
        self._ends = now() + seconds
        self._margin = min(MARGIN * seconds, MAX_MARGIN_S)
        self._longest: dict[Work, float] = {}

    @classmethod
    def parse(cls, text: str | None) -> Deadline:
        """Parse `--max-time`: `8h`, `1h30m`, `HH:MM:SS` or `D-HH:MM:SS`.

        Raises:
            RssegError: The text is not a time, or the time is 0.
        """
        if text is None:
            return cls()
        match = _UNITS.fullmatch(text.strip()) or _CLOCK.fullmatch(text.strip())
        days, hours, minutes, seconds = map(int, match.groups("0") if match else (0, 0, 0, 0))
        total = ((24 * days + hours) * 60 + minutes) * 60 + seconds
        if not total:
            raise RssegError(
                f"{text} is not a duration",
                where="--max-time",
                fix="8h, 90m, 1h30m, HH:MM:SS or D-HH:MM:SS",
            )
        return cls(total)

    def subtract(self, seconds: float) -> None:
        """Subtract time that passed before this object was created."""
        self._ends -= seconds

    @contextmanager
    def timing(self, work: Work, *, usual: bool = True) -> Iterator[None]:
        """Measure the duration of the work in this block; ignore it if not `usual`."""
        started = self._now()
        yield
        if usual:
            self.expect(work, self._now() - started)

    def expect(self, work: Work, seconds: float) -> None:
        """Set the minimum expected duration of some work."""
        self._longest[work] = max(seconds, self._longest.get(work, 0.0))

    def expect_state(self, size: int) -> None:
        """Set the expected duration of writing a resume state of `size` bytes."""
        self.expect("save", size / SLOW_DISK)

    def near(self, *coming: Work) -> bool:
        """Return True if the remaining time is too short for the coming work."""
        needed = sum(self._longest.get(work, 0.0) for work in coming)
        return self._ends - self._now() < SPARE * needed + self._margin

"""Turns Ctrl-C and a queue's SIGTERM into a wish that the loop can grant between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from rsseg_cli import distributed


class StopSignal:
    """Listens for SIGINT and SIGTERM while it is entered; a second Ctrl-C stops at once.

    Under several processes it does not: `torchrun` passes on a Ctrl-C that all have had already.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        """Start to listen (only the main thread can)."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT and not distributed.active():
            raise KeyboardInterrupt
        self.wanted = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put the old handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type] # what signal() returned

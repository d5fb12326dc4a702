"""Stop signals: SIGINT and SIGTERM end the loop after the current step."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from rsseg_cli import distributed


class StopSignal:
    """Context manager that handles SIGINT and SIGTERM; a second Ctrl-C stops at once.

    With several processes it does not, because `torchrun` repeats the first Ctrl-C.

    Attributes:
        received: True once a signal has arrived.
    """

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        """Install the handlers (only the main thread can)."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT and not distributed.active():
            raise KeyboardInterrupt
        self.received = True

    def __exit__(self, *error: object) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type] # what signal() returned

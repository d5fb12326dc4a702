"""Progress of a prediction in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from rsseg_cli.predict.timing import Wait


class Line:
    """Messages and a progress bar on stderr.

    Args:
        quiet: Print nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.shown = self.console.is_terminal and not quiet

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    @contextmanager
    def scene(self, pixels: int) -> Iterator[Callable[[int, int, Wait], None]]:
        """Show the progress of one scene; yields the callback for the engine."""
        started = perf_counter()
        with Progress(
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:3.0f} %  {task.fields[line]}  left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.shown,
            transient=True,
        ) as bar:
            task = bar.add_task("map", total=pixels, line="")

            def report(done: int, total: int, wait: Wait) -> None:
                speed = done / 1e6 / max(perf_counter() - started, 1e-9)
                line = (
                    f"{speed:.1f} Mpx/s  waiting: disk {wait.disk:.0%} "
                    f"device {wait.device:.0%} writer {wait.writer:.0%}"
                )
                bar.update(task, completed=done, total=total, line=line)

            yield report

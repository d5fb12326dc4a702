"""Progress of a prediction in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from rsseg_cli.predict.outputs import ProgressCallback
from rsseg_cli.predict.timing import Wait


class ProgressLine:
    """Messages and a progress bar on stderr; nothing if quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.has_bar = self.console.is_terminal and not quiet

    def print(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    @contextmanager
    def bar(self, pixels: int) -> Iterator[ProgressCallback]:
        """Open the progress bar of one scene; yield the callback for the engine."""
        started = perf_counter()
        with Progress(
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:3.0f} %  {task.fields[line]}  left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.has_bar,
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

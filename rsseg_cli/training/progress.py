"""Progress of the training in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from rsseg_cli.number_format import percent
from rsseg_cli.settings import Json


class Progress:
    """Progress bar on stderr and a line per validation; none of them outside of a terminal.

    Args:
        steps: Number of steps of the run.
        start: Step from which the run is resumed.
        quiet: Print nothing.
    """

    def __init__(self, steps: int, *, start: int = 0, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.has_bar = self.console.is_terminal and not quiet
        self.bar = Bar(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[line]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.has_bar,
        )
        self.task: TaskID = self.bar.add_task("train", total=steps, completed=start, line="")

    def __enter__(self) -> Progress:
        """Start the bar."""
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the bar."""
        self.bar.stop()

    def print(self, *lines: str) -> None:
        """Print lines, unless quiet."""
        for line in lines:
            self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def step(self, done: int) -> None:
        """Advance the bar."""
        self.bar.update(self.task, completed=done)

    def log(self, record: dict[str, Json]) -> None:
        """Show a line of `metrics.jsonl` beside the bar."""
        losses = record["losses"]
        items = losses.items() if isinstance(losses, dict) else ()
        terms = " ".join(f"{name} {_number(value):.3f}" for name, value in items)
        line = (
            f"loss {_number(record['loss']):.3f} ({terms})  lr {_number(record['lr']):.1e}  "
            f"{_number(record['images_per_s']):.1f} img/s  wait {_number(record['wait']):.0%}"
        )
        self.bar.update(self.task, line=line + _costs(record.get("method")))

    def scored(self, step: int, score: dict[str, Json], best: dict[str, Json]) -> None:
        """Print the scores of a validation."""
        if not self.has_bar:
            return
        self.console.print(
            f"val @ {step:,}  mIoU {_percent(score.get('miou'))} "
            f"(best {_percent(best.get('miou'))})  mAcc {_percent(score.get('macc'))}"
            f"{_worst(score)}",
            highlight=False,
        )


def _costs(method: Json) -> str:
    """Format the fractions of the training time that the method needs for its own work."""
    costs = method.get("cost") if isinstance(method, dict) else None
    items = costs.items() if isinstance(costs, dict) else ()
    return "".join(f"  {name} {_number(fraction):.0%}" for name, fraction in items)


def _worst(score: dict[str, Json]) -> str:
    classes = score.get("classes")
    rows = [row for row in classes if isinstance(row, dict)] if isinstance(classes, list) else []
    scored = sorted(
        (_number(row["iou"]), str(row["name"])) for row in rows if row["iou"] is not None
    )
    if len(scored) < 4:
        return ""
    return "   worst: " + ", ".join(f"{name} {iou:.1%}" for iou, name in scored[:3])


def _number(value: Json) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _percent(value: Json) -> str:
    return percent(None if value is None else _number(value))

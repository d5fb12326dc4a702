"""From runs to a table: mean and spread per target, and the difference to `frozen` by seed."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BASELINE = "frozen"
NOTE = (
    "mIoU and IoU in percent; ± is the standard deviation over seeds, of differences paired by "
    "seed. Trainable: what may train, the head included; methods that select train a part of it."
)


@dataclass(frozen=True)
class Spread:
    """A mean and the sample standard deviation; None with a single value."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Sum values up, None when there are none."""
        if not values:
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))

    def text(self, *, signed: bool = False) -> str:
        """Show percent: `51.2 ± 1.3`."""
        mean = f"{100 * self.mean:{'+' if signed else ''}.1f}"
        return mean if self.deviation is None else f"{mean} ± {100 * self.deviation:.1f}"


@dataclass(frozen=True)
class Row:
    """A method on a pair, over its seeds.

    Attributes:
        miou: On the target.
        gain: mIoU minus that of `frozen` with the same seed.
        ious: By class, the mean over the seeds.
        trainable: Parameters, with the head's, that may train; of some methods only a part does.
        fit_s: Mean duration of a fit in seconds.
        fit_cpu_s: The same in the processor's own seconds.
        failed: Runs without a result.
    """

    pair: str
    backbone: str
    init: str
    method: str
    miou: Spread | None
    gain: Spread | None
    ious: dict[str, float]
    trainable: int | None
    head: int | None
    fit_s: float | None
    fit_cpu_s: float | None
    failed: int


@dataclass(frozen=True)
class Summary:
    """A method over all pairs: what it gains, and on how many of them."""

    backbone: str
    init: str
    method: str
    gain: Spread
    better: int


Record = dict[str, Any]


def tabulate(records: Iterable[Record]) -> list[Row]:
    """Make a row for each method of each pair and start, in the order of their first run."""
    groups: dict[tuple[str, str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        key = (record["pair"], record["backbone"], record["init"], record["method"])
        groups[key].append(record)
    order = list(dict.fromkeys(key[:3] for key in groups))
    rows = [_row(key, runs, groups.get((*key[:3], BASELINE), [])) for key, runs in groups.items()]
    return sorted(rows, key=lambda row: order.index((row.pair, row.backbone, row.init)))


def _row(key: tuple[str, str, str, str], runs: list[Record], baseline: list[Record]) -> Row:
    done = [run for run in runs if "error" not in run]
    frozen = {run["seed"]: run["miou"] for run in baseline if "error" not in run}
    paired = [run["miou"] - frozen[run["seed"]] for run in done if run["seed"] in frozen]

    def mean(name: str) -> float | None:
        return statistics.fmean(run[name] for run in done) if done else None

    return Row(
        *key,
        miou=Spread.of([run["miou"] for run in done]),
        gain=None if key[3] == BASELINE else Spread.of(paired),
        ious={
            name: statistics.fmean(run["ious"][name] for run in done)
            for name in (done[0]["ious"] if done else ())
        },
        trainable=done[0]["trainable"] if done else None,
        head=done[0]["head"] if done else None,
        fit_s=mean("fit_s"),
        fit_cpu_s=mean("fit_cpu_s"),
        failed=len(runs) - len(done),
    )


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """Put together what each method gains over `frozen`, every pair with the same weight."""
    gains: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row.gain is not None:
            gains[row.backbone, row.init, row.method].append(row.gain.mean)
    return [
        Summary(*key, gain=spread, better=sum(value > 0 for value in values))
        for key, values in gains.items()
        if (spread := Spread.of(values))
    ]


def to_markdown(rows: Sequence[Row], title: str) -> str:
    """Write the table, a section per pair, and the summary."""
    lines = [f"# {title}", "", NOTE, ""]
    for pair in dict.fromkeys(row.pair for row in rows):
        own = [row for row in rows if row.pair == pair]
        classes = next((list(row.ious) for row in own if row.ious), [])
        head = ["backbone", "method", "mIoU", f"against {BASELINE}", *classes]
        lines += [f"## {pair}", "", *_table([*head, "trainable", "seeds", "s", "CPU s"])]
        lines += [_line(row, classes) for row in own] + [""]
    summary = summarise(rows)
    if summary:
        lines += [f"## All pairs, against {BASELINE}", ""]
        lines += _table(["backbone", "method", "gain, ± over pairs", "better on"])
        lines += [
            f"| {one.backbone} {one.init} | {one.method} | {one.gain.text(signed=True)} | "
            f"{one.better} of {one.gain.count} |"
            for one in summary
        ]
    return "\n".join(lines).rstrip() + "\n"


def _table(names: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]


def _line(row: Row, classes: Sequence[str]) -> str:
    cells = [f"{row.backbone} {row.init}", row.method]
    if row.miou is None:
        cells += ["failed", *[""] * (len(classes) + 5)]
    else:
        failed = f" ({row.failed} failed)" if row.failed else ""
        cells += [
            row.miou.text(),
            row.gain.text(signed=True) if row.gain else "",
            *(f"{100 * row.ious[name]:.0f}" for name in classes),
            f"{row.trainable:,}",
            f"{row.miou.count}{failed}",
            f"{row.fit_s:.0f}",
            f"{row.fit_cpu_s:.0f}",
        ]
    return f"| {' | '.join(cells)} |"


def write(records: Iterable[Record], folder: Path, title: str) -> Path:
    """Write table.json and table.md; return the latter."""
    rows = tabulate(records)
    document = {
        "title": title,
        "rows": [asdict(row) for row in rows],
        "summary": [asdict(one) for one in summarise(rows)],
    }
    (folder / "table.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    target = folder / "table.md"
    target.write_text(to_markdown(rows, title), encoding="utf-8")
    return target

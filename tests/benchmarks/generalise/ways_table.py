"""From runs of `generalise.ways` to a table: each way on the target and on the source."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from generalise.runs import Record
from generalise.table import Spread
from generalise.ways import WAYS

NOTE = (
    "mIoU in percent on ground of the target that no run has seen; ± is the standard deviation "
    "over seeds, of gains over `source` paired by seed. `last`: the same of the model of the last "
    "step. Source: mIoU on held-back ground of the source (`target` has not learnt there)."
)


@dataclass(frozen=True)
class Row:
    """A way of a method on a pair, over its seeds.

    Attributes:
        target: mIoU of the chosen model on the target.
        gain: That minus the one of `source` with the same seed.
        last: mIoU of the last model on the target.
        source: mIoU of the chosen model on the source.
        stopped: Runs that ended early.
        cpu_s: Mean processor seconds of a run.
    """

    pair: str
    method: str
    way: str
    target: Spread
    gain: Spread
    last: Spread
    source: Spread
    stopped: int
    cpu_s: float


def tabulate(records: Iterable[Record]) -> list[Row]:
    """Make a row for each way of each method and pair; runs that failed are left out."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        if "error" not in record:
            groups[record["pair"], record["method"]].append(record["ways"])
    order = list(dict.fromkeys(pair for pair, _ in groups))
    rows = [_row(*key, way, runs) for key, runs in groups.items() for way in WAYS]
    return sorted(rows, key=lambda row: order.index(row.pair))


def _row(pair: str, method: str, way: str, runs: Sequence[Record]) -> Row:
    def spread(name: str) -> Spread:
        found = Spread.of([run[way][name] for run in runs])
        assert found is not None
        return found

    gain = Spread.of([run[way]["target"] - run["source"]["target"] for run in runs])
    assert gain is not None
    return Row(
        pair,
        method,
        way,
        target=spread("target"),
        gain=gain,
        last=spread("last"),
        source=spread("source"),
        stopped=sum(run[way]["stopped"] is not None for run in runs),
        cpu_s=spread("cpu_s").mean,
    )


def to_markdown(rows: Sequence[Row], title: str) -> str:
    """Write the table, a section per pair."""
    lines = [f"# {title}", "", NOTE, ""]
    head = ["method", "way", "target", "gain", "last", "source", "seeds", "stopped", "CPU s"]
    for pair in dict.fromkeys(row.pair for row in rows):
        lines += [f"## {pair}", "", f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
        lines += [_line(row) for row in rows if row.pair == pair] + [""]
    return "\n".join(lines).rstrip() + "\n"


def _line(row: Row) -> str:
    cells = [
        row.method,
        row.way,
        row.target.text(),
        "" if row.way == "source" else row.gain.text(signed=True),
        row.last.text(),
        row.source.text(),
        str(row.target.count),
        str(row.stopped),
        f"{row.cpu_s:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def write(records: Iterable[Record], folder: Path, title: str) -> Path:
    """Write table.json and table.md; return the latter."""
    rows = tabulate(records)
    document = {"title": title, "rows": [asdict(row) for row in rows]}
    (folder / "table.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    target = folder / "table.md"
    target.write_text(to_markdown(rows, title), encoding="utf-8")
    return target

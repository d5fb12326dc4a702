"""Comparison of scored runs: groups of seeds, means, deviations and paired differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from scipy.stats import t

from rsseg_cli.errors import RssegError
from rsseg_cli.metrics.bootstrap import LEVEL
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.number_format import UNDEFINED, percent, signed_percent
from rsseg_cli.report.table import Cell, ReportTable, text_cell

MEANS = {"miou": "mIoU", "macc": "mAcc", "accuracy": "accuracy", "f1": "F1"}
Pick = Callable[[Scores], "float | None"]
"""Returns one score of a run."""


@dataclass(frozen=True)
class ScoredRun:
    """A run with its scores, named by the path that the user gave."""

    name: str
    scores: Scores
    kind: str
    """Equal for runs that differ by their seed alone."""
    seed: int | None = None


@dataclass(frozen=True)
class Spread:
    """A score over the runs of a group, as fractions 0..1."""

    mean: float
    deviation: float | None
    """Standard deviation (n - 1); None for a single run."""
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """Return the spread of the defined values; None without any."""
        known = tuple(value for value in values if value is not None)
        if not known:
            return None
        deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
        return cls(float(np.mean(known)), deviation, known)

    @property
    def cell(self) -> Cell:
        """Mean and deviation in percent."""
        deviation = "" if self.deviation is None else f" \u00b1 {percent(self.deviation)}"
        return Cell(percent(self.mean) + deviation, self.mean)


@dataclass(frozen=True)
class Difference:
    """Difference of a score to that of the first group, as fractions 0..1."""

    mean: float
    """Mean difference over common seeds; difference of the means if there are none."""
    low: float | None
    high: float | None
    """Ends of the 95 % interval (Student's t); None with fewer than two pairs."""
    pairs: int
    """Number of common seeds."""

    @property
    def cell(self) -> Cell:
        """Difference in percentage points, with its interval."""
        text = signed_percent(self.mean)
        if self.low is not None and self.high is not None:
            text += f" ({signed_percent(self.low)} to {signed_percent(self.high)})"
        elif not self.pairs:
            text += " (not paired)"
        return Cell(text, self.mean)


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ by their seed alone."""

    name: str
    runs: tuple[ScoredRun, ...]

    @property
    def seeds(self) -> list[int]:
        """The known seeds."""
        return [run.seed for run in self.runs if run.seed is not None]

    def spread(self, pick: Pick) -> Spread | None:
        """Return mean and deviation of one score."""
        return Spread.of([pick(run.scores) for run in self.runs])

    def minus(self, other: SeedGroup, pick: Pick) -> Difference | None:
        """Return the difference of one score to another group, paired by seed if possible."""
        ours, theirs = (
            {run.seed: pick(run.scores) for run in group.runs if run.seed is not None}
            for group in (self, other)
        )
        differences = [
            mine - yours
            for seed, mine in ours.items()
            if mine is not None and (yours := theirs.get(seed)) is not None
        ]
        if not differences:
            minuend, subtrahend = self.spread(pick), other.spread(pick)
            if minuend is None or subtrahend is None:
                return None
            return Difference(minuend.mean - subtrahend.mean, None, None, 0)
        mean = float(np.mean(differences))
        if len(differences) < 2:
            return Difference(mean, None, None, 1)
        error = float(np.std(differences, ddof=1)) / len(differences) ** 0.5
        half = float(t.ppf((1 + LEVEL) / 2, len(differences) - 1)) * error
        return Difference(mean, mean - half, mean + half, len(differences))


def group_runs(runs: Sequence[ScoredRun]) -> list[SeedGroup]:
    """Return runs of one kind together, in the order in which kinds first appear.

    Raises:
        RssegError: The runs have different classes.
    """
    for other in runs[1:]:
        _require_same_classes(runs[0], other)
    kinds: dict[str, list[ScoredRun]] = {}
    for run in runs:
        kinds.setdefault(run.kind, []).append(run)
    groups: list[SeedGroup] = []
    for members in kinds.values():
        name = _common_name([run.name for run in members])
        taken = {group.name for group in groups}
        groups.append(SeedGroup(members[0].name if name in taken else name, tuple(members)))
    return groups


def _require_same_classes(first: ScoredRun, other: ScoredRun) -> None:
    ours, theirs = (
        {f"{row.id} {row.name}" for row in run.scores.classes} for run in (first, other)
    )
    if ours == theirs:
        return
    only = [
        f"only in {run.name}: {', '.join(sorted(names))}"
        for run, names in ((first, ours - theirs), (other, theirs - ours))
        if names
    ]
    raise RssegError(
        "the runs have different classes; " + "; ".join(only),
        where=f"{first.name}, {other.name}",
        fix="compare runs with the same class list",
    )


def _common_name(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    shared = "".join(letters[0] for letters in alike).rstrip("-_./= ").removesuffix("-seed")
    return shared or f"{names[0]} and {len(names) - 1} more"


def remarks(runs: Sequence[ScoredRun]) -> list[str]:
    """Return reasons why the runs are hard to compare."""
    references: dict[tuple[int, ...], list[str]] = {}
    for run in runs:
        pixels = tuple(row.pixels for row in run.scores.classes)
        references.setdefault(pixels, []).append(run.name)
    if len(references) < 2:
        return []
    parts = [f"{', '.join(names)} ({sum(pixels):,} px)" for pixels, names in references.items()]
    return ["The runs were scored on different ground truth: " + " / ".join(parts) + "."]


def picks(runs: Sequence[ScoredRun]) -> dict[str, dict[str, Pick]]:
    """Return all scores that are compared: title of the section, name of the row, score."""
    classes = runs[0].scores.classes
    domains = list(dict.fromkeys(name for run in runs for name in run.scores.groups))
    return {
        "Scores": {title: _mean(name) for name, title in MEANS.items()},
        "Classes, IoU": {row.name: _class(index) for index, row in enumerate(classes)},
        "Domains, mIoU": {name: _domain(name) for name in domains},
    }


def _mean(name: str) -> Pick:
    def pick(scores: Scores) -> float | None:
        value: float | None = getattr(scores, name)
        return value

    return pick


def _class(index: int) -> Pick:
    return lambda scores: scores.classes[index].iou


def _domain(name: str) -> Pick:
    return lambda scores: scores.groups[name].miou if name in scores.groups else None


def comparison_tables(groups: Sequence[SeedGroup]) -> list[ReportTable]:
    """Return a table of the scores with groups in rows, and others with groups in columns."""
    summary, *others = picks([run for group in groups for run in group.runs]).items()
    details = [_details(title, groups, rows) for title, rows in others if rows]
    return [_summary(groups, summary[1]), *details]


def _summary(groups: Sequence[SeedGroup], scores: Mapping[str, Pick]) -> ReportTable:
    first, headline = groups[0], next(iter(scores))
    rows = []
    for group in groups:
        difference = None if group is first else group.minus(first, scores[headline])
        cells = [_cell(group.spread(pick)) for pick in scores.values()]
        seeds = Cell(str(len(group.runs)), len(group.runs))
        rows.append((text_cell(group.name), seeds, *cells, _cell(difference)))
    header = ("Run", "Seeds", *scores, f"{headline} minus the first")
    return ReportTable("Scores", header, tuple(rows))


def _details(title: str, groups: Sequence[SeedGroup], scores: Mapping[str, Pick]) -> ReportTable:
    first, *others = groups
    rows = []
    for name, pick in scores.items():
        means = [_cell(group.spread(pick)) for group in groups]
        differences = [_cell(group.minus(first, pick)) for group in others]
        rows.append((text_cell(name), *means, *differences))
    names = [group.name for group in groups]
    minus = (f"{name} minus the first" for name in names[1:])
    return ReportTable(title, (title.partition(",")[0], *names, *minus), tuple(rows))


def _cell(number: Spread | Difference | None) -> Cell:
    return Cell(UNDEFINED) if number is None else number.cell


def to_json(groups: Sequence[SeedGroup], sentences: Sequence[str]) -> dict[str, Any]:
    """Return the machine-readable form of a comparison."""
    sections = picks([run for group in groups for run in group.runs])
    keys = dict(zip(("scores", "classes", "domains"), sections.values(), strict=True))
    return {
        "groups": [
            {
                "name": group.name,
                "runs": [run.name for run in group.runs],
                "seeds": group.seeds,
                **{key: _scores_json(group, groups[0], rows) for key, rows in keys.items()},
            }
            for group in groups
        ],
        "remarks": list(sentences),
    }


def _scores_json(group: SeedGroup, first: SeedGroup, rows: Mapping[str, Pick]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, pick in rows.items():
        spread = group.spread(pick)
        difference = None if group is first else group.minus(first, pick)
        numbers = (
            {"mean": None, "deviation": None, "values": []} if spread is None else asdict(spread)
        )
        document[name] = numbers | {"difference": difference and asdict(difference)}
    return document

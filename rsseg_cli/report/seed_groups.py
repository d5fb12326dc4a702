"""Several scored runs beside each other: seeds in groups, means, spreads and paired differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from scipy.stats import t

from rsseg_cli.errors import RssegError
from rsseg_cli.metrics.bootstrap import LEVEL
from rsseg_cli.metrics.scores import Scores

MEANS = {"miou": "mIoU", "macc": "mAcc", "accuracy": "accuracy", "f1": "F1"}
Pick = Callable[[Scores], "float | None"]


@dataclass(frozen=True)
class Entry:
    """One scored run.

    Attributes:
        name: What the user called it.
        scores: Its scores.
        kind: Runs that differ by their seed alone have the same kind.
        seed: Its seed, where it is known.
    """

    name: str
    scores: Scores
    kind: str
    seed: int | None = None


@dataclass(frozen=True)
class Spread:
    """A score over the runs of a group: shares 0..1.

    Attributes:
        mean: Mean.
        deviation: Standard deviation (n - 1); None of a single run.
        values: The score of each run.
    """

    mean: float
    deviation: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """Sum up; None where no run has the score."""
        known = tuple(value for value in values if value is not None)
        if not known:
            return None
        deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
        return cls(float(np.mean(known)), deviation, known)


@dataclass(frozen=True)
class Difference:
    """How much a group is better than the first one, in shares 0..1.

    Attributes:
        mean: Mean of the differences seed by seed; of the means where no seed is shared.
        low: End of the 95 % interval (Student's t); None with fewer than two pairs.
        high: The other end.
        pairs: Seeds that both have.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone."""

    name: str
    entries: tuple[Entry, ...]

    @property
    def seeds(self) -> list[int]:
        """The known seeds."""
        return [one.seed for one in self.entries if one.seed is not None]

    def spread(self, pick: Pick) -> Spread | None:
        """Sum one score up."""
        return Spread.of([pick(one.scores) for one in self.entries])

    def minus(self, other: Group, pick: Pick) -> Difference | None:
        """Compare one score with another group, seed by seed where both have the seed."""
        ours, theirs = (
            {one.seed: pick(one.scores) for one in group.entries if one.seed is not None}
            for group in (self, other)
        )
        pairs = [
            mine - yours
            for seed, mine in ours.items()
            if mine is not None and (yours := theirs.get(seed)) is not None
        ]
        if not pairs:
            own, first = self.spread(pick), other.spread(pick)
            if own is None or first is None:
                return None
            return Difference(own.mean - first.mean, None, None, 0)
        mean = float(np.mean(pairs))
        if len(pairs) < 2:
            return Difference(mean, None, None, 1)
        error = float(np.std(pairs, ddof=1)) / len(pairs) ** 0.5
        half = float(t.ppf((1 + LEVEL) / 2, len(pairs) - 1)) * error
        return Difference(mean, mean - half, mean + half, len(pairs))


def group(entries: Sequence[Entry]) -> list[Group]:
    """Put runs of one kind together, in the order in which kinds first appear.

    Raises:
        RssegError: The runs do not have the same classes; it says which differ.
    """
    for other in entries[1:]:
        _require_same_classes(entries[0], other)
    kinds: dict[str, list[Entry]] = {}
    for one in entries:
        kinds.setdefault(one.kind, []).append(one)
    found: list[Group] = []
    for own in kinds.values():
        name = _common_name([one.name for one in own])
        taken = {each.name for each in found}
        found.append(Group(own[0].name if name in taken else name, tuple(own)))
    return found


def _require_same_classes(first: Entry, other: Entry) -> None:
    ours, theirs = (
        {f"{row.id} {row.name}" for row in one.scores.classes} for one in (first, other)
    )
    if ours == theirs:
        return
    only = [
        f"only in {one.name}: {', '.join(sorted(names))}"
        for one, names in ((first, ours - theirs), (other, theirs - ours))
        if names
    ]
    raise RssegError(
        "the runs have different classes; " + "; ".join(only),
        where=f"{first.name}, {other.name}",
        fix="compare runs of one class list",
    )


def _common_name(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    shared = "".join(letters[0] for letters in alike).rstrip("-_./= ").removesuffix("-seed")
    return shared or f"{names[0]} and {len(names) - 1} more"


def remarks(entries: Sequence[Entry]) -> list[str]:
    """Say what makes the runs hard to compare."""
    grounds: dict[tuple[int, ...], list[str]] = {}
    for one in entries:
        truth = tuple(row.pixels for row in one.scores.classes)
        grounds.setdefault(truth, []).append(one.name)
    if len(grounds) < 2:
        return []
    parts = [f"{', '.join(names)} ({sum(truth):,} px)" for truth, names in grounds.items()]
    return ["The runs were scored on different ground: " + " / ".join(parts) + "."]


def picks(entries: Sequence[Entry]) -> dict[str, dict[str, Pick]]:
    """List all that is compared: the section, its rows, and how a score is found."""
    classes = entries[0].scores.classes
    domains = list(dict.fromkeys(name for one in entries for name in one.scores.groups))
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


def to_json(groups: Sequence[Group], said: Sequence[str]) -> dict[str, Any]:
    """Give what `--json` prints."""
    sections = picks([one for each in groups for one in each.entries])
    first = groups[0]
    return {
        "groups": [
            {
                "name": each.name,
                "runs": [one.name for one in each.entries],
                "seeds": each.seeds,
                **{
                    key: _json(each, first, sections[title])
                    for key, title in zip(("scores", "classes", "domains"), sections, strict=True)
                },
            }
            for each in groups
        ],
        "remarks": list(said),
    }


def _json(own: Group, first: Group, rows: Mapping[str, Pick]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, pick in rows.items():
        spread = own.spread(pick)
        difference = None if own is first else own.minus(first, pick)
        found[name] = {
            "mean": None if spread is None else spread.mean,
            "deviation": None if spread is None else spread.deviation,
            "values": [] if spread is None else list(spread.values),
            "difference": None if difference is None else vars(difference),
        }
    return found

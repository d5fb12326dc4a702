"""Bootstrap intervals of scores: how much they depend on which ground was scored.

Pixels of one place are alike, so that not pixels are drawn but scenes, or square blocks of ground
where there are few scenes (Efron and Tibshirani 1993, percentile intervals).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.metrics.interval import Estimate

LEVEL = 0.95
DRAWS = 1000
LEAST = 10
"""With fewer units an interval would say more than is known."""
_CELLS = 2**22
"""Numbers held at a time."""


@dataclass(frozen=True)
class Units:
    """What is drawn.

    Attributes:
        kind: "scenes" or "blocks".
        counts: (U, K, K + 1) pixels by true and mapped class, the last column unmapped.
    """

    kind: str
    counts: NDArray[Any]

    @classmethod
    def choose(cls, scenes: Sequence[NDArray[Any]], blocks: Sequence[NDArray[Any]]) -> Units | None:
        """Take scenes, else blocks, None where there are too few of both with any truth."""
        for kind, counts in (("scenes", scenes), ("blocks", blocks)):
            labelled = [one for one in counts if one.any()]
            if len(labelled) >= LEAST:
                return cls(kind, np.stack(labelled))
        return None


@dataclass(frozen=True)
class Intervals:
    """95 % intervals of scores.

    Attributes:
        kind: What was drawn: "scenes" or "blocks".
        units: How many there are.
        scores: Interval of `miou`, `macc`, `accuracy` and `f1`.
        iou: Interval of the IoU of each class; None where it is not defined.
    """

    kind: str
    units: int
    scores: Mapping[str, Estimate] = field(default_factory=dict)
    iou: Sequence[Estimate | None] = ()

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Intervals:
        """Read what `asdict` gave."""
        scores = {name: Estimate(**one) for name, one in found["scores"].items()}
        return cls(
            found["kind"], found["units"], scores, [Estimate.from_json(one) for one in found["iou"]]
        )


def intervals(units: Units) -> Intervals:
    """Find the intervals of all scores of a confusion matrix."""
    parts = [means(part) for part in resample(units.counts)]
    drawn = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    whole = means(units.counts.sum(0, dtype=np.int64)[None])
    ends = [
        {name: percentiles(values, share) for name, values in drawn.items()}
        for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    ]
    scores = {
        name: Estimate.known(float(whole[name][0]), *(float(end[name]) for end in ends))
        for name in ("miou", "macc", "accuracy", "f1")
    }
    return Intervals(
        kind=units.kind,
        units=len(units.counts),
        scores={name: one for name, one in scores.items() if one is not None},
        iou=[
            Estimate.known(*(float(value) for value in values))
            for values in zip(whole["iou"][0], *(end["iou"] for end in ends), strict=True)
        ],
    )


def resample(counts: NDArray[Any], *, draws: int = DRAWS, seed: int = 0) -> Iterator[NDArray[Any]]:
    """Draw as many units as there are, with repetition, and sum their counts.

    Args:
        counts: (U, ...) of each unit.
        draws: How often.
        seed: The same seed draws the same.

    Yields:
        (D, ...) sums, until there are `draws`.
    """
    rng = np.random.default_rng(seed)
    number, shape = len(counts), counts.shape[1:]
    flat = counts.reshape(number, -1).astype(np.float64)
    most = max(1, _CELLS // max(1, flat.shape[1]))
    for start in range(0, draws, most):
        size = min(most, draws - start)
        times = rng.multinomial(number, np.full(number, 1 / number), size=size)
        yield (times @ flat).reshape(size, *shape)


def means(counts: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Score counts (D, K, K + 1) as `ConfusionMatrix.scores` does; NaN where it says None."""
    mapped = counts[..., :-1]
    hits = np.diagonal(mapped, axis1=1, axis2=2)
    true, predicted = counts.sum(2), mapped.sum(1)
    present = true > 0
    iou = _divide(hits, true + predicted - hits)
    return {
        "iou": iou,
        "miou": _mean(iou, present),
        "macc": _mean(_divide(hits, true), present),
        "f1": _mean(_divide(2 * hits, true + predicted), present),
        "accuracy": _divide(hits.sum(1), true.sum(1)),
    }


def percentiles(values: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Find the value below which a share of (D, ...) lies, NaN left out; NaN without any."""
    known = ~np.isnan(values)
    filled = np.where(known.any(0), values, 0.0)
    found = np.nanpercentile(filled, 100 * share, axis=0)
    return np.where(known.any(0), found, np.nan)


def _divide(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.divide(
        part, whole, out=np.full(part.shape, np.nan), where=whole > 0
    )
    return found


def _mean(values: NDArray[np.float64], present: NDArray[np.bool_]) -> NDArray[np.float64]:
    return _divide(np.where(present, values, 0.0).sum(1), present.sum(1))

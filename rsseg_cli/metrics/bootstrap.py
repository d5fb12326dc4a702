"""Bootstrap confidence intervals of scores (Efron and Tibshirani 1993, percentile intervals).

Neighbouring pixels are correlated. Therefore whole scenes are resampled, or square blocks of them
if there are few scenes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.metrics.interval import Estimate

LEVEL = 0.95
RESAMPLES = 1000
MIN_UNITS = 10
"""Smallest number of units for an interval."""
_MAX_NUMBERS = 2**22
"""Size of the sums in memory at a time."""


@dataclass(frozen=True)
class Units:
    """Units to resample.

    Attributes:
        kind: "scenes" or "blocks".
        counts: (U, K, K + 1) pixels by true and mapped class, the last column unmapped.
    """

    kind: str
    counts: NDArray[Any]

    @classmethod
    def choose(cls, scenes: Sequence[NDArray[Any]], blocks: Sequence[NDArray[Any]]) -> Units | None:
        """Return the labelled scenes, else the labelled blocks; None if both are too few."""
        for kind, counts in (("scenes", scenes), ("blocks", blocks)):
            labelled = [unit for unit in counts if unit.any()]
            if len(labelled) >= MIN_UNITS:
                return cls(kind, np.stack(labelled))
        return None


@dataclass(frozen=True)
class Intervals:
    """95 % intervals of scores.

    Attributes:
        kind: Units of the bootstrap: "scenes" or "blocks".
        units: Number of units.
        scores: Estimates of `miou`, `macc`, `accuracy` and `f1`.
        iou: Estimate of the IoU of each class; None where it is undefined.
    """

    kind: str
    units: int
    scores: Mapping[str, Estimate] = field(default_factory=dict)
    iou: Sequence[Estimate | None] = ()

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Intervals:
        """Build intervals from the output of `asdict`."""
        scores = {name: Estimate(**row) for name, row in document["scores"].items()}
        iou = [Estimate.from_json(row) for row in document["iou"]]
        return cls(document["kind"], document["units"], scores, iou)


def intervals(units: Units) -> Intervals:
    """Compute the intervals of the scores of a confusion matrix."""
    parts = [scores_of_counts(part) for part in resample(units.counts)]
    samples = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    whole = scores_of_counts(units.counts.sum(0, dtype=np.int64)[None])
    ends = [
        {name: percentiles(values, quantile) for name, values in samples.items()}
        for quantile in ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    ]
    scores = {
        name: Estimate.known(float(whole[name][0]), *(float(end[name]) for end in ends))
        for name in ("miou", "macc", "accuracy", "f1")
    }
    return Intervals(
        kind=units.kind,
        units=len(units.counts),
        scores={name: estimate for name, estimate in scores.items() if estimate is not None},
        iou=[
            Estimate.known(*(float(value) for value in values))
            for values in zip(whole["iou"][0], *(end["iou"] for end in ends), strict=True)
        ],
    )


def resample(
    counts: NDArray[Any], *, draws: int = RESAMPLES, seed: int = 0
) -> Iterator[NDArray[Any]]:
    """Yield sums (D, ...) over U units drawn with replacement, in chunks of `draws` in total.

    Args:
        counts: (U, ...) counts of each unit.
        draws: Number of sums.
        seed: Seed of the random numbers.
    """
    rng = np.random.default_rng(seed)
    number, shape = len(counts), counts.shape[1:]
    flat = counts.reshape(number, -1).astype(np.float64)
    chunk = max(1, _MAX_NUMBERS // max(1, flat.shape[1]))
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        times = rng.multinomial(number, np.full(number, 1 / number), size=size)
        yield (times @ flat).reshape(size, *shape)


def scores_of_counts(counts: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Return the scores of counts (D, K, K + 1), as in `ConfusionMatrix`; NaN where undefined."""
    mapped = counts[..., :-1]
    hits = np.diagonal(mapped, axis1=1, axis2=2)
    true, predicted = counts.sum(2), mapped.sum(1)
    present = true > 0
    iou = divide(hits, true + predicted - hits)
    return {
        "iou": iou,
        "miou": _mean_over(iou, present),
        "macc": _mean_over(divide(hits, true), present),
        "f1": _mean_over(divide(2 * hits, true + predicted), present),
        "accuracy": divide(hits.sum(1), true.sum(1)),
    }


def percentiles(values: NDArray[np.float64], quantile: float) -> NDArray[np.float64]:
    """Return the `quantile` (0..1) of (D, ...) over D, ignoring NaN; NaN if all are NaN."""
    known = ~np.isnan(values)
    filled = np.where(known.any(0), values, 0.0)
    quantiles = np.nanpercentile(filled, 100 * quantile, axis=0)
    return np.where(known.any(0), quantiles, np.nan)


def divide(parts: NDArray[Any], wholes: NDArray[Any]) -> NDArray[np.float64]:
    """Return quotients; NaN where the divisor is not positive."""
    quotients: NDArray[np.float64] = np.divide(
        parts, wholes, out=np.full(parts.shape, np.nan), where=wholes > 0
    )
    return quotients


def _mean_over(values: NDArray[np.float64], present: NDArray[np.bool_]) -> NDArray[np.float64]:
    return divide(np.where(present, values, 0.0).sum(1), present.sum(1))

"""Area-adjusted accuracy: class areas of a map, corrected by its errors on labelled pixels.

Stratified estimator of Olofsson et al. (2014, Remote Sensing of Environment 148, 42-57): the mapped
classes are the strata, their fractions of the map the weights, the labelled pixels the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.classes import Class
from rsseg_cli.metrics.bootstrap import LEVEL, Units, divide, percentiles, resample
from rsseg_cli.metrics.interval import Estimate

Z = 1.959963984540054
"""Half width of a 95 % interval in standard errors."""
MAX_SAMPLED = 0.01
"""Labelled fraction of a map below which labels are treated as a random sample of pixels."""

Floats = NDArray[np.float64]


class Stratified(NamedTuple):
    """Estimates or their standard errors, NaN where the sample has no pixel.

    The leading axes of the arrays are those of the counts.

    Attributes:
        accuracy: (...) overall accuracy.
        users: (..., K) user's accuracy: correct fraction of each mapped class.
        producers: (..., K) producer's accuracy: correctly mapped fraction of each true class.
        area: (..., K) fraction of the total area of each true class.
    """

    accuracy: Floats
    users: Floats
    producers: Floats
    area: Floats


def stratified(counts: NDArray[Any], mapped: NDArray[Any]) -> Stratified:
    """Compute accuracies and areas (equations 1 to 3 and 9 of the paper).

    Args:
        counts: (..., K, K) labelled pixels by true (row) and mapped (column) class.
        mapped: (K,) pixels of the whole map by class. A class without labelled pixels is left out.
    """
    fractions, weights = _strata(counts, mapped)
    joint = weights[..., None, :] * fractions  # p_ij, true class first
    correct, area = _diagonal(joint), joint.sum(-1)
    users = np.where(counts.sum(-2) > 0, _diagonal(fractions), np.nan)
    return Stratified(correct.sum(-1), users, divide(correct, area), area)


def standard_errors(counts: NDArray[Any], mapped: NDArray[Any]) -> Stratified:
    """Return the standard errors of `stratified` (equations 5 to 7 and 10 of the paper).

    They are valid for labelled pixels drawn at random within each mapped class, and NaN for a
    mapped class with one labelled pixel.
    """
    fractions, weights = _strata(counts, mapped)
    estimates = stratified(counts, mapped)
    sample = counts.sum(-2).astype(np.float64)
    spread = fractions * (1 - fractions) / np.where(sample > 1, sample - 1, np.nan)[..., None, :]
    spread = np.where(weights[..., None, :] > 0, spread, 0.0)
    variance = weights[..., None, :] ** 2 * spread  # of p_ij
    correct = _diagonal(variance)
    producers = estimates.producers
    others = (producers**2) * (variance.sum(-1) - correct)
    area = np.where(estimates.area > 0, estimates.area, np.nan)
    return Stratified(
        accuracy=np.sqrt(correct.sum(-1)),
        users=np.where(np.isnan(estimates.users), np.nan, np.sqrt(_diagonal(spread))),
        producers=np.sqrt((1 - producers) ** 2 * correct + others) / area,
        area=np.sqrt(variance.sum(-1)),
    )


def _diagonal(matrices: Floats) -> Floats:
    return np.diagonal(matrices, axis1=-2, axis2=-1)


def _strata(counts: NDArray[Any], mapped: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return the fractions of true classes per stratum (..., K, K) and the weights (..., K)."""
    sample = counts.sum(-2)
    fractions = counts / np.maximum(sample, 1)[..., None, :]
    weights = np.where(sample > 0, mapped, 0.0)
    return fractions, weights / np.maximum(weights.sum(-1, keepdims=True), 1)


@dataclass(frozen=True)
class ClassArea:
    """Area and accuracies of one class.

    Attributes:
        mapped: Fraction of the map.
        area: Estimated fraction of the total area.
        users: User's accuracy; None if no labelled pixel is mapped as the class.
        producers: Producer's accuracy; None if the estimated area is 0.
    """

    id: int
    name: str
    mapped: float
    area: Estimate
    users: Estimate | None
    producers: Estimate | None


@dataclass(frozen=True)
class AreaEstimate:
    """Area-adjusted accuracy of a whole map.

    Attributes:
        accuracy: Correct fraction of the map.
        classes: Areas and accuracies per class.
        hectares: Mapped area; None if the area of a pixel is unknown.
        interval: Method of the intervals: "sample" for the paper's formulas, "blocks" or "scenes"
            for a bootstrap over these.
        unsampled: Mapped classes without labelled pixels, which are left out of the estimate.
    """

    accuracy: Estimate
    classes: list[ClassArea]
    hectares: float | None
    interval: str
    unsampled: list[str]

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> AreaEstimate:
        """Build an estimate from the output of `asdict`."""
        rows = [
            ClassArea(
                **row
                | {name: Estimate.from_json(row[name]) for name in ("users", "producers")}
                | {"area": Estimate(**row["area"])}
            )
            for row in document["classes"]
        ]
        accuracy = Estimate(**document["accuracy"])
        return cls(**document | {"accuracy": accuracy, "classes": rows})


def estimate_area(
    classes: Sequence[Class],
    counts: NDArray[Any],
    mapped: NDArray[Any],
    *,
    units: Units | None = None,
    areas_m2: NDArray[np.float64] | None = None,
) -> AreaEstimate | None:
    """Compute accuracy and areas of a map with 95 % intervals; None without map or labels.

    If less than 1 % of the map is labelled, the labels are treated as a sample of pixels, for which
    the paper's formulas hold. Labels of whole patches are correlated: their intervals come from a
    bootstrap over scenes or blocks.

    Args:
        classes: The K classes.
        counts: (K, K) labelled pixels by true (row) and mapped (column) class.
        mapped: (K,) pixels of the whole map by class.
        units: Counts per scene or block.
        areas_m2: (K,) area of these pixels, which weighs the classes; None: all pixels are equal.
            Labelled pixels count alike, whatever their area.
    """
    if not counts.any() or not mapped.any():
        return None
    weights = mapped if areas_m2 is None else areas_m2 * (mapped.sum() / areas_m2.sum())
    estimates = stratified(counts, weights)
    if units is None or counts.sum() < MAX_SAMPLED * mapped.sum():
        errors = standard_errors(counts, weights)
        low, high = _shift(estimates, errors, -Z), _shift(estimates, errors, Z)
        interval = "sample"
    else:
        samples = [stratified(part[..., :-1], weights) for part in resample(units.counts)]
        low, high = (_percentile(samples, end) for end in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        interval = units.kind

    def estimate(name: str, index: int) -> Estimate | None:
        values = (float(getattr(part, name)[index]) for part in (estimates, low, high))
        return Estimate.known(*values)

    rows = [
        ClassArea(
            id=cls.id,
            name=cls.name,
            mapped=float(weights[index] / weights.sum()),
            area=Estimate.of(
                float(estimates.area[index]), float(low.area[index]), float(high.area[index])
            ),
            users=estimate("users", index),
            producers=estimate("producers", index),
        )
        for index, cls in enumerate(classes)
    ]
    missing = (mapped > 0) & (counts.sum(0) == 0)
    return AreaEstimate(
        accuracy=Estimate.of(float(estimates.accuracy), float(low.accuracy), float(high.accuracy)),
        classes=rows,
        hectares=None if areas_m2 is None else float(areas_m2.sum()) / 10_000,
        interval=interval,
        unsampled=[cls.name for cls, no_label in zip(classes, missing, strict=True) if no_label],
    )


def _shift(estimates: Stratified, errors: Stratified, factor: float) -> Stratified:
    pairs = zip(estimates, errors, strict=True)
    return Stratified(*(np.clip(value + factor * error, 0.0, 1.0) for value, error in pairs))


def _percentile(samples: Sequence[Stratified], quantile: float) -> Stratified:
    arrays = (np.concatenate(parts) for parts in zip(*samples, strict=True))
    return Stratified(*(percentiles(array, quantile) for array in arrays))

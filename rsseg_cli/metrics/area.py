"""Area-adjusted accuracy: what a map says about area, corrected by what the truth says of the map.

The stratified estimator of Olofsson et al. (2014, Remote Sensing of Environment 148, 42-57): the
mapped classes are the strata, their shares of the map the weights, the labelled pixels the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.classes import Class
from rsseg_cli.metrics.bootstrap import LEVEL, Units, percentiles, resample
from rsseg_cli.metrics.interval import Estimate

Z = 1.959963984540054
"""Half width of a 95 % interval in standard errors."""
SAMPLED = 0.01
"""Labelled share of a map below which the labels are taken for points drawn by chance."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Stratified:
    """Estimates and their standard errors; NaN where the sample says nothing.

    All arrays have any number of leading axes, shared with the counts that they come from.

    Attributes:
        accuracy: (...) overall accuracy.
        users: (..., K) user's accuracy: how much of a mapped class is right.
        producers: (..., K) producer's accuracy: how much of a true class was found.
        area: (..., K) share of the ground that truly is the class.
    """

    accuracy: Floats
    users: Floats
    producers: Floats
    area: Floats


def stratified(counts: NDArray[Any], mapped: NDArray[Any]) -> Stratified:
    """Estimate accuracies and areas (equations 1 to 3 and 9 of the paper).

    Args:
        counts: (..., K, K) labelled pixels by true (row) and mapped (column) class.
        mapped: (K,) pixels of the whole map by class. A mapped class without any labelled pixel
            is left out, as if the map ended there.
    """
    share, weights = _strata(counts, mapped)
    joint = weights[..., None, :] * share  # p_ij, true class first
    right = np.diagonal(joint, axis1=-2, axis2=-1)
    area = joint.sum(-1)
    users = np.where(counts.sum(-2) > 0, np.diagonal(share, axis1=-2, axis2=-1), np.nan)
    return Stratified(right.sum(-1), users, _divide(right, area), area)


def standard_errors(counts: NDArray[Any], mapped: NDArray[Any]) -> Stratified:
    """Give the standard errors of `stratified` (equations 5 to 7 and 10 of the paper).

    They hold for labelled pixels drawn at random within each mapped class. A mapped class with
    one labelled pixel has no error that could be known.
    """
    share, weights = _strata(counts, mapped)
    found = stratified(counts, mapped)
    drawn = counts.sum(-2).astype(np.float64)
    spread = share * (1 - share) / np.where(drawn > 1, drawn - 1, np.nan)[..., None, :]
    spread = np.where(weights[..., None, :] > 0, spread, 0.0)
    variance = weights[..., None, :] ** 2 * spread  # of p_ij
    own = np.diagonal(variance, axis1=-2, axis2=-1)
    produced = found.producers
    others = (produced**2) * (variance.sum(-1) - own)
    ground = np.where(found.area > 0, found.area, np.nan)
    return Stratified(
        accuracy=np.sqrt(own.sum(-1)),
        users=np.where(
            np.isnan(found.users), np.nan, np.sqrt(np.diagonal(spread, axis1=-2, axis2=-1))
        ),
        producers=np.sqrt((1 - produced) ** 2 * own + others) / ground,
        area=np.sqrt(variance.sum(-1)),
    )


def _strata(counts: NDArray[Any], mapped: NDArray[Any]) -> tuple[Floats, Floats]:
    """Give the share of true classes in each stratum (..., K, K), and the weights (..., K)."""
    drawn = counts.sum(-2)
    share = counts / np.maximum(drawn, 1)[..., None, :]
    weights = np.where(drawn > 0, mapped, 0.0)
    whole = weights.sum(-1, keepdims=True)
    return share, weights / np.maximum(whole, 1)


def _divide(part: Floats, whole: Floats) -> Floats:
    found: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return found


@dataclass(frozen=True)
class ClassArea:
    """What is known about the area of one class.

    Attributes:
        mapped: Its share of the map.
        area: Its share of the ground, estimated.
        users: User's accuracy; None when it is not mapped where there is truth.
        producers: Producer's accuracy; None when there is none of it.
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
        accuracy: Share of the map that is right.
        classes: Per class.
        hectares: Mapped ground; None where the size of a pixel is not known.
        interval: Where intervals come from: "sample" are the paper's formulas, "blocks" and
            "scenes" a bootstrap over these.
        unsampled: Mapped classes without any labelled pixel: they are outside the estimate.
    """

    accuracy: Estimate
    classes: list[ClassArea]
    hectares: float | None
    interval: str
    unsampled: list[str]

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> AreaEstimate:
        """Read what `asdict` gave."""
        rows = [
            ClassArea(
                **row
                | {name: Estimate.from_json(row[name]) for name in ("users", "producers")}
                | {"area": Estimate(**row["area"])}
            )
            for row in found["classes"]
        ]
        return cls(**found | {"accuracy": Estimate(**found["accuracy"]), "classes": rows})


def estimate_area(
    classes: Sequence[Class],
    counts: NDArray[Any],
    mapped: NDArray[Any],
    *,
    units: Units | None = None,
    hectares: float | None = None,
) -> AreaEstimate | None:
    """Estimate accuracy and areas of a map with 95 % intervals; None without map or labels.

    Where little of the map is labelled, the labels are a sample of points and the paper's
    formulas hold. Where whole patches are, neighbours are alike, and intervals come from
    resampling scenes or blocks.

    Args:
        classes: The K classes.
        counts: (K, K) labelled pixels by true (row) and mapped (column) class.
        mapped: (K,) pixels of the whole map by class.
        units: Counts per scene or block.
        hectares: Mapped ground.
    """
    if not counts.any() or not mapped.any():
        return None
    found = stratified(counts, mapped)
    if units is None or counts.sum() < SAMPLED * mapped.sum():
        error = standard_errors(counts, mapped)
        low, high = _shift(found, error, -Z), _shift(found, error, Z)
        interval = "sample"
    else:
        drawn = [stratified(part[..., :-1], mapped) for part in resample(units.counts)]
        low, high = (_percentile(drawn, share) for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        interval = units.kind

    def estimate(name: str, index: int) -> Estimate | None:
        parts = (float(getattr(one, name)[index]) for one in (found, low, high))
        return Estimate.known(*parts)

    rows = [
        ClassArea(
            id=one.id,
            name=one.name,
            mapped=float(mapped[index] / mapped.sum()),
            area=Estimate.of(
                float(found.area[index]), float(low.area[index]), float(high.area[index])
            ),
            users=estimate("users", index),
            producers=estimate("producers", index),
        )
        for index, one in enumerate(classes)
    ]
    missing = (mapped > 0) & (counts.sum(0) == 0)
    return AreaEstimate(
        accuracy=Estimate.of(float(found.accuracy), float(low.accuracy), float(high.accuracy)),
        classes=rows,
        hectares=hectares,
        interval=interval,
        unsampled=[one.name for one, out in zip(classes, missing, strict=True) if out],
    )


NAMES = ("accuracy", "users", "producers", "area")


def _shift(found: Stratified, error: Stratified, times: float) -> Stratified:
    moved = (getattr(found, name) + times * getattr(error, name) for name in NAMES)
    return Stratified(*(np.clip(one, 0.0, 1.0) for one in moved))


def _percentile(drawn: Sequence[Stratified], share: float) -> Stratified:
    values = (np.concatenate([getattr(one, name) for one in drawn]) for name in NAMES)
    return Stratified(*(percentiles(one, share) for one in values))

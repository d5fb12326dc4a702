"""The sentences and headline numbers that all forms of a report share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rsseg_cli.metrics.area import AreaEstimate
from rsseg_cli.metrics.interval import Estimate
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.number_format import UNDEFINED, percent

FEW, WORST = 20, 10
"""Of more than FEW scenes, a table shows the WORST first."""


@dataclass(frozen=True)
class HeadlineScore:
    """A score that sums a report up, as text in percent; `interval` is empty where unknown."""

    name: str
    text: str
    interval: str


def headline(scores: Scores) -> list[HeadlineScore]:
    """Return the scores that sum a comparison up, best known first."""
    intervals = scores.intervals.scores if scores.intervals else {}
    names = {"miou": "mIoU", "macc": "mAcc", "accuracy": "Accuracy", "f1": "F1"}
    rows = [
        HeadlineScore(
            name,
            percent(getattr(scores, key)),
            interval_text(intervals[key]) if key in intervals else "",
        )
        for key, name in names.items()
    ]
    if scores.boundary_px is not None:
        rows.append(HeadlineScore("Boundary mIoU", percent(scores.boundary_miou), ""))
    return rows


def interval_text(estimate: Estimate | None) -> str:
    """Return the ends of an interval in percent."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return UNDEFINED
    return f"{percent(estimate.low)}\u2009\u2013\u2009{percent(estimate.high)}"


def with_interval(estimate: Estimate | None) -> str:
    """Return a value in percent, followed by its interval where it has one."""
    if estimate is None:
        return UNDEFINED
    ends = interval_text(estimate)
    return percent(estimate.value) + (f" ({ends})" if ends != UNDEFINED else "")


def worst_first(parts: Mapping[str, Scores]) -> dict[str, Scores]:
    """Return domains or scenes in the order of their mIoU; those without one come last."""

    def key(name: str) -> tuple[bool, float]:
        miou = parts[name].miou
        return miou is None, miou or 0.0

    return {name: parts[name] for name in sorted(parts, key=key)}


def notes(scores: Scores) -> list[str]:
    """Return sentences that explain how the scores are defined, as far as it matters for these."""
    sentences = [
        f"Scores in percent, over {scores.pixels:,} pixels with a class in the truth. Means "
        f"run over the {len(scores.present)} of {len(scores.classes)} classes that occur in it."
    ]
    absent = [row.name for row in scores.classes if row.absent]
    strays = [row.name for row in scores.classes if row.stray]
    if absent:
        sentences.append(f"Absent from truth and map, so without scores: {', '.join(absent)}.")
    if strays:
        sentences.append(
            f"In the map but not in the truth: {', '.join(strays)}. Their IoU of 0 is outside the "
            f"means; counted in, as torchmetrics and MMSegmentation do, mIoU is "
            f"{percent(scores.miou_with_strays)}."
        )
    if scores.unmapped:
        unmapped = percent(scores.unmapped / scores.pixels)
        sentences.append(
            f"The map is empty on {scores.unmapped:,} labelled pixels ({unmapped} %), which count "
            "as misses."
        )
    if scores.boundary_px is not None:
        sentences.append(
            f"Boundary IoU compares outlines {scores.boundary_px} pixels wide (Cheng et al. 2021)."
        )
    if scores.intervals is not None:
        sentences.append(
            f"95 % confidence intervals: bootstrap over {scores.intervals.units} "
            f"{scores.intervals.kind}."
        )
    return sentences


def area_notes(area: AreaEstimate) -> list[str]:
    """Return sentences that explain how the areas were estimated."""
    if area.interval == "sample":
        method = "by the paper's formulas for labelled pixels drawn at random."
    else:
        method = f"by a bootstrap over {area.interval}, since the labels come in patches."
    sentences = [
        f"Stratified estimator of Olofsson et al. (2014), for the whole map: its accuracy is "
        f"{with_interval(area.accuracy)} %. In brackets the 95 % interval, {method}"
    ]
    if area.unsampled:
        names = ", ".join(area.unsampled)
        sentences.append(f"Left out, since they are mapped but nowhere labelled: {names}.")
    return sentences


@dataclass(frozen=True)
class Mistake:
    """Number of pixels of one class mapped as another, and fraction 0..1 of the true class."""

    true: str
    mapped: str
    pixels: int
    fraction: float


def mistakes(scores: Scores, most: int = 6) -> list[Mistake]:
    """Return the most frequent confusions, by pixels."""
    pairs = [
        Mistake(true.name, mapped.name, pixels, pixels / true.pixels)
        for true, row in zip(scores.classes, scores.confusion, strict=True)
        for mapped, pixels in zip(scores.classes, row, strict=True)
        if true.id != mapped.id and pixels
    ]
    return sorted(pairs, key=lambda pair: -pair.pixels)[:most]

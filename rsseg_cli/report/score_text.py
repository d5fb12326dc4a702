"""The words and numbers that all forms of a report share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rsseg_cli.metrics.area import AreaEstimate
from rsseg_cli.metrics.interval import Estimate
from rsseg_cli.metrics.saliency_names import NAMES
from rsseg_cli.metrics.scores import ClassScore, Scores

FEW, WORST = 20, 10
"""A table of more scenes than the first shows the second, the worst of them."""
NOTHING = "-"
"""Shown where nothing defines a score."""


def percent(value: float | None) -> str:
    """Write a share 0..1 as percent with one decimal."""
    return NOTHING if value is None else f"{100 * value:.1f}"


def count(value: int) -> str:
    """Write a number of pixels, thousands apart."""
    return f"{value:,}"


def span(estimate: Estimate | None) -> str:
    """Write the ends of an interval in percent."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return NOTHING
    return f"{100 * estimate.low:.1f}\u2009\u2013\u2009{100 * estimate.high:.1f}"


def both(estimate: Estimate | None) -> str:
    """Write a value in percent, with its interval where there is one."""
    if estimate is None:
        return NOTHING
    ends = span(estimate)
    return percent(estimate.value) + (f" ({ends})" if ends != NOTHING else "")


def score_span(scores: Scores, name: str) -> str:
    """Write the interval of `miou`, `macc`, `accuracy` or `f1`."""
    return span(scores.intervals.scores.get(name)) if scores.intervals else NOTHING


def share(part: int, whole: int) -> float | None:
    """Divide two counts; None where there is nothing to divide by."""
    return part / whole if whole else None


def worst_first(parts: Mapping[str, Scores]) -> dict[str, Scores]:
    """Order domains or scenes by mIoU; those without any come last."""

    def key(name: str) -> tuple[bool, float]:
        miou = parts[name].miou
        return miou is None, miou or 0.0

    return {name: parts[name] for name in sorted(parts, key=key)}


def headline_spans(scores: Scores) -> list[str]:
    """List the intervals of the headline, in its order."""
    found = [score_span(scores, name) for name in ("miou", "macc", "accuracy", "f1")]
    return [*found, NOTHING]


def headline(scores: Scores) -> list[tuple[str, str]]:
    """List the scores that sum a comparison up, best known first, in percent."""
    found = [
        ("mIoU", percent(scores.miou)),
        ("mAcc", percent(scores.macc)),
        ("Accuracy", percent(scores.accuracy)),
        ("F1", percent(scores.f1)),
    ]
    if scores.boundary_px is not None:
        found.append(("Boundary mIoU", percent(scores.boundary_miou)))
    return found


@dataclass(frozen=True)
class ClassRow:
    """A class as tables show it.

    Attributes:
        score: Its numbers.
        truth_share: Share of the labelled ground that is the class.
        map_share: Share of the labelled ground that the map gives to the class.
        mark: "absent", "not in truth" or nothing.
        iou: Its IoU with an interval, where there is one.
    """

    score: ClassScore
    truth_share: float | None
    map_share: float | None
    mark: str
    iou: Estimate | None = None


def class_rows(scores: Scores) -> list[ClassRow]:
    """List the classes with their shares of the ground."""
    return [
        ClassRow(
            score=row,
            truth_share=share(row.pixels, scores.pixels),
            map_share=share(row.predicted, scores.pixels),
            mark="absent" if row.absent else "not in truth" if row.stray else "",
            iou=scores.intervals.iou[index] if scores.intervals else None,
        )
        for index, row in enumerate(scores.classes)
    ]


def notes(scores: Scores) -> list[str]:
    """Say how the numbers are meant, as far as it matters for these scores."""
    found = [
        f"Scores in percent, over {count(scores.pixels)} pixels with a class in the truth. Means "
        f"run over the {len(scores.present)} of {len(scores.classes)} classes that occur in it."
    ]
    absent = [row.name for row in scores.classes if row.absent]
    strays = [row.name for row in scores.classes if row.stray]
    if absent:
        found.append(f"Absent from truth and map, so without scores: {', '.join(absent)}.")
    if strays:
        found.append(
            f"In the map but not in the truth: {', '.join(strays)}. Their IoU of 0 is outside the "
            f"means; counted in, as torchmetrics and MMSegmentation do, mIoU is "
            f"{percent(scores.miou_with_strays)}."
        )
    if scores.unmapped:
        empty = percent(share(scores.unmapped, scores.pixels))
        found.append(
            f"The map is empty on {count(scores.unmapped)} labelled pixels ({empty} %): misses."
        )
    if scores.boundary_px is not None:
        found.append(
            f"Boundary IoU compares outlines {scores.boundary_px} pixels wide (Cheng et al. 2021)."
        )
    if scores.intervals is not None:
        found.append(
            f"Intervals hold with 95 %: bootstrap over {scores.intervals.units} "
            f"{scores.intervals.kind} of ground."
        )
    return found


def area_rows(area: AreaEstimate) -> list[list[str]]:
    """List what is known about the area of each class; see `area_header`."""
    rows = []
    for one in area.classes:
        cells = [one.name, percent(one.mapped), both(one.area)]
        if area.hectares is not None:
            cells.append(_hectares(one.area, area.hectares))
        rows.append([*cells, both(one.users), both(one.producers)])
    return rows


def area_header(area: AreaEstimate) -> list[str]:
    """Name the columns of `area_rows`."""
    ground = ["hectares"] if area.hectares is not None else []
    return ["class", "% of map", "% of ground", *ground, "user's accuracy", "producer's accuracy"]


def area_notes(area: AreaEstimate) -> list[str]:
    """Say how the areas were estimated."""
    found = [
        f"Stratified estimator of Olofsson et al. (2014), for the whole map: its accuracy is "
        f"{both(area.accuracy)} %. In brackets the 95 % interval, "
        + {
            "sample": "by the paper's formulas: labelled pixels count as drawn at random.",
        }.get(area.interval, f"by a bootstrap over {area.interval}: labels come in patches.")
    ]
    if area.unsampled:
        found.append(f"Mapped, but nowhere labelled, and so left out: {', '.join(area.unsampled)}.")
    return found


def _hectares(estimate: Estimate, whole: float) -> str:
    shown = f"{estimate.value * whole:,.4g}" if whole < 100 else f"{estimate.value * whole:,.0f}"
    if estimate.low is None or estimate.high is None:
        return shown
    half = (estimate.high - estimate.low) / 2 * whole
    return f"{shown} \u00b1 " + (f"{half:,.3g}" if whole < 100 else f"{half:,.0f}")


@dataclass(frozen=True)
class Mistake:
    """Pixels of one class that the map gives to another.

    Attributes:
        true: Name of the class that it is.
        taken_for: Name of the class that the map says.
        pixels: How many.
        of_class: Their share of the true class.
    """

    true: str
    taken_for: str
    pixels: int
    of_class: float


def mistakes(scores: Scores, most: int = 6) -> list[Mistake]:
    """List what is most often taken for what, by pixels."""
    found = [
        Mistake(true.name, guess.name, pixels, pixels / true.pixels)
        for true, row in zip(scores.classes, scores.confusion, strict=True)
        for guess, pixels in zip(scores.classes, row, strict=True)
        if true.id != guess.id and pixels
    ]
    return sorted(found, key=lambda one: -one.pixels)[:most]


def saliency_rows(scores: Scores) -> list[tuple[str, str]]:
    """List the scores of a soft map, four decimals as papers print them."""
    known = scores.saliency or {}
    rows = [
        (title, NOTHING if known[name] is None else f"{known[name]:.4f}")
        for name, title in NAMES.items()
        if name in known
    ]
    if rows:
        rows.append(("Images", f"{known['images']:,} ({known['empty']:,} without an object)"))
    return rows


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table; the first column is text, the others are numbers."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    joined = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([joined[0], "|---|" + "---:|" * (len(header) - 1), *joined[1:]])

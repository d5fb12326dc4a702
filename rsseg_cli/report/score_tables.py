"""The tables of a report: classes, confusion, groups, areas and soft maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rsseg_cli.metrics.area import AreaEstimate
from rsseg_cli.metrics.interval import Estimate
from rsseg_cli.metrics.scores import SALIENCY_NAMES, ClassScore, Scores
from rsseg_cli.number_format import UNDEFINED
from rsseg_cli.report.score_text import interval_text, with_interval
from rsseg_cli.report.table import Cell, ReportTable, count_cell, percent_cell, text_cell

INTERVAL = "95 %"
CSV_COLUMNS = (
    *("part", "id", "name", "iou", "f1", "precision", "recall", "boundary_iou"),
    *("pixels", "predicted", "unmapped", "iou_low", "iou_high"),
)
GROUP_SCORES = {"mIoU": "miou", "mAcc": "macc", "Accuracy": "accuracy", "F1": "f1"}


def class_table(scores: Scores) -> ReportTable:
    """Return the scores of each class, and its fractions of the reference and of the map."""
    columns = {"IoU": "iou", "F1": "f1", "Precision": "precision", "Recall": "recall"}
    if scores.boundary_px is not None:
        columns["Boundary IoU"] = "boundary_iou"
    rows = []
    for index, row in enumerate(scores.classes):
        iou, *others = (getattr(row, name) for name in columns.values())
        cells = [_class_name(row), percent_cell(iou, color=row.color, bar=True)]
        if scores.intervals:
            cells.append(_interval_cell(scores.intervals.iou[index]))
        cells += [percent_cell(value) for value in others]
        for pixels in (row.pixels, row.predicted):
            cells.append(percent_cell(fraction(pixels, scores.pixels)))
        rows.append((*cells, count_cell(row.pixels)))
    first, *rest = columns
    interval = [INTERVAL] if scores.intervals else []
    return ReportTable(
        "Classes",
        ("Class", first, *interval, *rest, "Truth %", "Map %", "Pixels"),
        tuple(rows),
        details=frozenset({INTERVAL, "Pixels"}),
        faint=frozenset(index for index, row in enumerate(scores.classes) if row.absent),
    )


def _class_name(row: ClassScore) -> Cell:
    note = "absent" if row.absent else "not in truth" if row.stray else ""
    return text_cell(row.name, color=row.color, note=note)


def confusion_table(
    scores: Scores, kind: str = "truth", *, unmapped: bool | None = None
) -> ReportTable:
    """Return the confusion matrix: true classes in rows, mapped classes in columns.

    Args:
        scores: With counts of pixels.
        kind: "truth" for percent of the true class, "map" for percent of the mapped class, or
            "pixels".
        unmapped: Add the column of the unmapped pixels; None: where there are any.
    """
    show_unmapped = bool(scores.unmapped) if unmapped is None else unmapped
    counts = [
        [*row, true.unmapped] if show_unmapped else row
        for row, true in zip(scores.confusion, scores.classes, strict=True)
    ]
    mapped = [sum(column) for column in zip(*counts, strict=True)]
    largest = max(max(row) for row in counts) or 1
    rows = []
    for index, (row, true) in enumerate(zip(counts, scores.classes, strict=True)):
        cells = []
        for column, pixels in enumerate(row):
            hit = index == column and true.pixels > 0
            whole = {"truth": true.pixels, "map": mapped[column]}.get(kind)
            value = pixels if whole is None else fraction(pixels, whole)
            plain = count_cell(pixels) if whole is None else percent_cell(value)
            shade = pixels / largest if whole is None else value or 0.0
            cells.append(Cell(plain.text, plain.value, shade=shade, strong=hit))
        rows.append((text_cell(true.name, color=true.color), *cells))
    names = [*(row.name for row in scores.classes), *(["unmapped"] if show_unmapped else [])]
    unit = {"truth": "% of the true class", "map": "% of the mapped class"}.get(kind, "pixels")
    title = f"Truth in rows, map in columns; {unit}"
    return ReportTable(title, ("truth", *names), tuple(rows), most_letters=12)


def group_table(title: str, groups: Mapping[str, Scores]) -> ReportTable:
    """Return the scores of domains or scenes."""
    intervals = any(scores.intervals for scores in groups.values())
    rows = []
    for name, scores in groups.items():
        miou, *others = (getattr(scores, key) for key in GROUP_SCORES.values())
        cells = [text_cell(name), percent_cell(miou, bar=True)]
        if intervals:
            known = scores.intervals.scores.get("miou") if scores.intervals else None
            cells.append(_interval_cell(known))
        rows.append((*cells, *map(percent_cell, others), count_cell(scores.pixels)))
    first, *rest = GROUP_SCORES
    interval = [INTERVAL] if intervals else []
    header = ("Name", first, *interval, *rest, "Pixels")
    return ReportTable(title, header, tuple(rows), details=frozenset({INTERVAL}))


def area_table(area: AreaEstimate) -> ReportTable:
    """Return mapped and estimated areas and the area-adjusted accuracies of each class."""
    hectares = [] if area.hectares is None else ["Hectares"]
    rows = []
    for row in area.classes:
        cells = [text_cell(row.name), percent_cell(row.mapped), _estimate_cell(row.area)]
        if area.hectares is not None:
            size = row.area.value * area.hectares
            cells.append(Cell(_hectares(row.area, area.hectares), size))
        rows.append((*cells, _estimate_cell(row.users), _estimate_cell(row.producers)))
    header = (
        "Class",
        "% of map",
        "% of area",
        *hectares,
        "User's accuracy",
        "Producer's accuracy",
    )
    return ReportTable("Area", header, tuple(rows))


def saliency_table(scores: Scores) -> ReportTable:
    """Return the scores of a soft map with four decimals, as papers print them."""
    known = scores.saliency or {}
    rows = [
        (text_cell(title), Cell(UNDEFINED if value is None else f"{value:.4f}", value))
        for name, title in SALIENCY_NAMES.items()
        if name in known
        for value in [known[name]]
    ]
    images = f"{known['images']:,} ({known['empty']:,} without an object)" if rows else ""
    last = ((text_cell("Images"), Cell(images, known.get("images"))),) if rows else ()
    return ReportTable("Soft map", ("Score", ""), (*rows, *last))


def csv_table(scores: Scores) -> ReportTable:
    """Return a row per class for everything and for each group and scene, as `report.csv` has it.

    `part` is "all", "group:<name>" or "scene:<name>". Rows without an id hold the means.
    """
    parts = [("all", scores), *((f"group:{name}", part) for name, part in scores.groups.items())]
    parts += [
        (f"scene:{name}", part) for name, part in scores.scenes.items() if name not in scores.groups
    ]
    rows = [row for name, part in parts for row in _csv_rows(name, part)]
    return ReportTable("", CSV_COLUMNS, tuple(rows))


def _csv_rows(part: str, scores: Scores) -> list[tuple[Cell, ...]]:
    intervals = scores.intervals
    names = ("iou", "f1", "precision", "recall", "boundary_iou")
    rows = []
    for index, row in enumerate(scores.classes):
        values = [getattr(row, name) for name in names]
        pixels = (row.pixels, row.predicted, row.unmapped)
        iou = intervals.iou[index] if intervals else None
        rows.append(_csv_row(part, count_cell(row.id), row.name, values, pixels, iou))
    means = (scores.miou, scores.f1, None, scores.macc, scores.boundary_miou)
    pixels = (scores.pixels, sum(row.predicted for row in scores.classes), scores.unmapped)
    miou = intervals.scores.get("miou") if intervals else None
    return [*rows, _csv_row(part, text_cell(""), "mean", means, pixels, miou)]


def _csv_row(
    part: str,
    number: Cell,
    name: str,
    values: Sequence[float | None],
    pixels: Sequence[int],
    iou: Estimate | None,
) -> tuple[Cell, ...]:
    ends = (None, None) if iou is None else (iou.low, iou.high)
    scores, counts = map(percent_cell, values), map(count_cell, pixels)
    return (text_cell(part), number, text_cell(name), *scores, *counts, *map(percent_cell, ends))


def fraction(part: int, whole: int) -> float | None:
    """Return the quotient of two counts; None where the second is 0."""
    return part / whole if whole else None


def _interval_cell(estimate: Estimate | None) -> Cell:
    return Cell(interval_text(estimate), None if estimate is None else estimate.low)


def _estimate_cell(estimate: Estimate | None) -> Cell:
    return Cell(with_interval(estimate), None if estimate is None else estimate.value)


def _hectares(estimate: Estimate, hectares: float) -> str:
    value = estimate.value * hectares
    text = f"{value:,.4g}" if hectares < 100 else f"{value:,.0f}"
    if estimate.low is None or estimate.high is None:
        return text
    half = (estimate.high - estimate.low) / 2 * hectares
    return f"{text} \u00b1 " + (f"{half:,.3g}" if hectares < 100 else f"{half:,.0f}")

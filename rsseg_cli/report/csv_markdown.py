"""Writes scores as CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from rsseg_cli.metrics.interval import Estimate
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.report import score_text as text

COLUMNS = (
    *("part", "id", "name", "iou", "f1", "precision", "recall", "boundary_iou"),
    *("pixels", "predicted", "unmapped"),
)
SPAN = ("iou_low", "iou_high")
MATRIX_MOST = 16
"""More classes than this make a Markdown table that no page shows well."""


def to_csv(scores: Scores) -> str:
    """Write one row per class for everything and for each group and scene.

    `part` is "all", "group:<name>" or "scene:<name>". Rows without an id hold the means; a score
    that nothing defines is an empty cell.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*COLUMNS, *SPAN])
    for part, one in _parts(scores):
        for index, row in enumerate(one.classes):
            span = _span(one.intervals.iou[index] if one.intervals else None)
            writer.writerow([part, *(getattr(row, name) for name in COLUMNS[1:]), *span])
        means = (one.miou, one.f1, None, one.macc, one.boundary_miou)
        predicted = sum(row.predicted for row in one.classes)
        span = _span(one.intervals.scores.get("miou") if one.intervals else None)
        writer.writerow([part, "", "mean", *means, one.pixels, predicted, one.unmapped, *span])
    return out.getvalue()


def _span(estimate: Estimate | None) -> tuple[float | None, float | None]:
    return (None, None) if estimate is None else (estimate.low, estimate.high)


def _parts(scores: Scores) -> Iterator[tuple[str, Scores]]:
    yield "all", scores
    for name, part in scores.groups.items():
        yield f"group:{name}", part
    for name, part in scores.scenes.items():
        if name not in scores.groups:
            yield f"scene:{name}", part


def confusion_csv(scores: Scores) -> str:
    """Write the confusion matrix in pixels: truth in rows, map in columns."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["truth", *(row.name for row in scores.classes), "unmapped"])
    for row, counts in zip(scores.classes, scores.confusion, strict=True):
        writer.writerow([row.name, *counts, row.unmapped])
    return out.getvalue()


def to_markdown(
    title: str,
    scores: Scores | None,
    *,
    remarks: Sequence[str] = (),
    about: Mapping[str, str] | None = None,
    config: str = "",
    pictures: Mapping[str, str] | None = None,
) -> str:
    """Write a report that reads well as text.

    Args:
        title: Its heading.
        scores: What was measured; None for a run that was not validated.
        remarks: What a reader should know about this comparison.
        about: Versions, hardware, speed.
        config: Settings of the run as YAML.
        pictures: Caption to relative path.
    """
    parts = [f"# {title}"]
    if scores is None:
        parts.append("Nothing was validated: there are no scores.")
    else:
        parts += _scored(scores)
    if remarks:
        parts.append("\n".join(f"> {remark}" for remark in remarks))
    parts += [f"![{name}]({path})" for name, path in (pictures or {}).items()]
    if about:
        parts += ["## Run", text.table(["what", "value"], list(about.items()))]
    if config:
        parts += ["## Settings", f"```yaml\n{config.rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def _scored(scores: Scores) -> list[str]:
    spans = text.headline_spans(scores)
    shown = [
        f"{name} **{value}**" + (f" ({span})" if span != text.NOTHING else "")
        for (name, value), span in zip(text.headline(scores), spans, strict=False)
    ]
    parts = [" · ".join(shown)]
    parts += ["## Classes", _classes(scores)]
    parts.append("\n".join(f"- {note}" for note in text.notes(scores)))
    if scores.groups:
        parts += ["## Groups", _groups(scores.groups)]
    if len(scores.scenes) > 1 and scores.scenes.keys() != scores.groups.keys():
        parts += ["## Scenes", _groups(scores.scenes)]
    if scores.area:
        parts += ["## Area", text.table(text.area_header(scores.area), text.area_rows(scores.area))]
        parts.append("\n".join(f"- {note}" for note in text.area_notes(scores.area)))
    if scores.calibration:
        error = text.percent(scores.calibration.ece)
        parts.append(f"Expected calibration error **{error}** % (Guo et al. 2017).")
    if scores.saliency:
        parts += ["## Soft map", text.table(["score", ""], text.saliency_rows(scores))]
    if 1 < len(scores.classes) <= MATRIX_MOST:
        parts += ["## Confusion", "Truth in rows, map in columns, percent of the true class."]
        parts.append(_confusion(scores))
    return parts


def _classes(scores: Scores) -> str:
    bounded = scores.boundary_px is not None
    header = ["class", "IoU", "F1", "precision", "recall"]
    header += [*(["boundary IoU"] if bounded else []), "% of truth", "% of map"]
    rows = []
    for row in text.class_rows(scores):
        one = row.score
        values = [one.iou, one.f1, one.precision, one.recall]
        values += [one.boundary_iou] if bounded else []
        name = f"{one.name} ({row.mark})" if row.mark else one.name
        cells = map(text.percent, (*values, row.truth_share, row.map_share))
        rows.append([name, *cells])
    return text.table(header, rows)


def _groups(parts: Mapping[str, Scores]) -> str:
    shown, note = list(parts.items()), ""
    if len(parts) > text.FEW:
        shown = list(text.worst_first(parts).items())[: text.WORST]
        note = f"\n\nThe {text.WORST} worst of {len(parts)}; all are in report.json."
    rows = [
        [name, *map(text.percent, (p.miou, p.macc, p.accuracy, p.f1)), text.count(p.pixels)]
        for name, p in shown
    ]
    return text.table(["", "mIoU", "mAcc", "accuracy", "F1", "pixels"], rows) + note


def _confusion(scores: Scores) -> str:
    rows = [
        [row.name, *(text.percent(text.share(n, row.pixels)) for n in (*counts, row.unmapped))]
        for row, counts in zip(scores.classes, scores.confusion, strict=True)
    ]
    return text.table(["", *(row.name for row in scores.classes), "unmapped"], rows)

"""Charts of a training run, of an adaptation and of calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from rsseg_cli.classes import Class
from rsseg_cli.metrics.calibration import Reliability
from rsseg_cli.report.charts import Series, line_chart, to_svg

TARGET_LABELS = "target labels, reported only"
"""Caption of numbers from labels of the target, which were not used to train or to choose."""


def training_charts(records: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Return charts of scores, losses, learning rate and speed from lines of `metrics.jsonl`."""
    steps = [record for record in records if "loss" in record]
    validations = [record for record in records if isinstance(record.get("val"), Mapping)]
    terms = sorted({name for record in steps for name in record.get("losses", {})})
    losses = [_series("loss", steps, "loss")]
    if len(terms) > 1:
        losses += [_series(name, steps, "losses", name) for name in terms]
    scores = [
        _series(name, validations, "val", key, factor=100)
        for name, key in (("mIoU", "miou"), ("mAcc", "macc"), ("accuracy", "accuracy"))
    ]
    figures = {
        "Validation, %": line_chart(scores),
        "Loss": line_chart(losses, log=True),
        "Learning rate": line_chart([_series("learning rate", steps, "lr")]),
        "Images per second": line_chart([_series("images/s", steps, "images_per_s")]),
    }
    return [to_svg(figure, title) for title, figure in figures.items() if figure is not None]


def calibration_chart(calibration: Reliability) -> Markup:
    """Return a chart of the accuracy over the confidence of the model."""
    confidence = [100 * part.confidence for part in calibration.bins]
    diagonal = [min(confidence), 100.0]
    lines = [
        Series("model", confidence, [100 * part.accuracy for part in calibration.bins]),
        Series("calibrated", diagonal, diagonal),
    ]
    figure = line_chart(lines)
    return Markup() if figure is None else to_svg(figure, "Accuracy, %, over confidence, %")


def draw_adaptation(
    records: Sequence[Mapping[str, Any]], classes: Sequence[Class]
) -> dict[str, Figure]:
    """Draw class fractions on the target, and coverage and confidence of the pseudo-labels.

    `records` are lines of `metrics.jsonl`.
    """
    validations = [record for record in records if "val" in record]
    teacher = [record for record in records if "teacher" in record]
    labelled = [record for record in validations if "target_labels" in record["val"]]
    shares = [
        _series(cls.name, validations, "val", "target", "shares", index, color=cls.hex_color)
        for index, cls in enumerate(classes)
    ]
    labels = [_series(name, teacher, "teacher", name) for name in ("coverage", "confidence")]
    miou = [_series("mIoU", labelled, "val", "target_labels", "miou")]
    charts = {
        "class shares on the target": (shares, "fraction of the pixels"),
        "pseudo-labels": (labels, "fraction, and mean probability"),
        TARGET_LABELS: (miou, "mIoU"),
    }
    figures = {
        title: line_chart(
            lines, label=label, x_label="step", zero=True, legend="outside right upper"
        )
        for title, (lines, label) in charts.items()
    }
    return {title: figure for title, figure in figures.items() if figure is not None}


def _series(
    name: str,
    records: Sequence[Mapping[str, Any]],
    *path: str | int,
    factor: float = 1.0,
    color: str | None = None,
) -> Series:
    """Return the numbers at a path of keys and indices into each record."""
    values = [_value(record, path) for record in records]
    return Series(
        name,
        [float(record["step"]) for record in records],
        [None if value is None else value * factor for value in values],
        color,
    )


def _value(record: Mapping[str, Any], path: Sequence[str | int]) -> float | None:
    value: Any = record
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return float(value) if isinstance(value, int | float) else None

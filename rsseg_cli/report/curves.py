"""Turns the lines of `metrics.jsonl` into the charts of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from rsseg_cli.report.charts import Line, line_chart


def curves(records: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Chart validation scores, losses, learning rate and speed; what is there of them."""
    steps = [record for record in records if "loss" in record]
    scored = [record for record in records if isinstance(record.get("val"), Mapping)]
    parts = sorted({name for record in steps for name in record.get("losses", {})})
    losses = [_line("loss", steps, "loss")]
    if len(parts) > 1:
        losses += [_line(name, steps, "losses", name) for name in parts]
    found = [
        line_chart(
            "Validation, %",
            [
                _line(name, scored, "val", key, scale=100)
                for name, key in (("mIoU", "miou"), ("mAcc", "macc"), ("accuracy", "accuracy"))
            ],
        ),
        line_chart("Loss", losses, log=True),
        line_chart("Learning rate", [_line("learning rate", steps, "lr")]),
        line_chart("Images per second", [_line("images/s", steps, "images_per_s")]),
    ]
    return [chart for chart in found if chart]


def _line(name: str, records: Sequence[Mapping[str, Any]], *path: str, scale: float = 1.0) -> Line:
    values = [_value(record, path) for record in records]
    return Line(
        name,
        [float(record["step"]) for record in records],
        [None if value is None else value * scale for value in values],
    )


def _value(record: Mapping[str, Any], path: Sequence[str]) -> float | None:
    found: Any = record
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) else None

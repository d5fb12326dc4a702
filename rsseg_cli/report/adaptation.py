"""Draws what happened on the target while a model was adapted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from rsseg_cli.classes import Class

REPORTED = "target labels, reported only"
"""Stands wherever a number comes from labels of the target, which taught and chose nothing."""


def draw_adaptation(
    records: Sequence[Mapping[str, Any]], classes: Sequence[Class]
) -> dict[str, Figure]:
    """Draw class shares, and coverage and confidence of the pseudo-labels, over the steps.

    Args:
        records: Lines of `metrics.jsonl`.
        classes: What the shares are of.
    """
    found = {}
    looks = [(line["step"], line["val"]["target"]) for line in records if "val" in line]
    said = [(line["step"], line["teacher"]) for line in records if "teacher" in line]
    reported = [
        (line["step"], line["val"]["target_labels"]["miou"])
        for line in records
        if "target_labels" in line.get("val", ())
    ]
    if looks:
        steps = [step for step, _ in looks]
        shares = {
            one.name: ([look["shares"][index] for _, look in looks], _hex(one))
            for index, one in enumerate(classes)
        }
        found["class shares on the target"] = _chart(steps, shares, "share of the pixels")
    if said:
        steps = [step for step, _ in said]
        lines = {
            name: ([float(one[name]) for _, one in said], color)
            for name, color in (("coverage", "#1f5f8b"), ("confidence", "#c4572b"))
        }
        found["pseudo-labels"] = _chart(steps, lines, "share, and mean probability")
    if reported:
        # A line has a gap where no class is there to take the mean over.
        values = [math.nan if miou is None else miou for _, miou in reported]
        found[REPORTED] = _chart(
            [step for step, _ in reported], {"mIoU": (values, "#1f5f8b")}, "mIoU"
        )
    return found


def _hex(one: Class) -> str:
    return "#{:02x}{:02x}{:02x}".format(*one.color)


def _chart(
    steps: Sequence[int], lines: Mapping[str, tuple[Sequence[float], str]], label: str
) -> Figure:
    figure = Figure(figsize=(7.0, 3.4), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for name, (values, color) in lines.items():
        axes.plot(steps, values, color=color, label=name, marker="o", markersize=3)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.set_ylim(0, None)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure

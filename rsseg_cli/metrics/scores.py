"""Scores of a prediction, and their JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rsseg_cli.metrics.area import AreaEstimate
from rsseg_cli.metrics.bootstrap import Intervals
from rsseg_cli.metrics.calibration import Reliability

SALIENCY_NAMES = {
    "s_measure": "S-measure",
    "f_adaptive": "F, adaptive threshold",
    "f_mean": "F, mean",
    "f_max": "F, max",
    "e_measure": "E-measure, mean",
    "e_adaptive": "E-measure, adaptive",
    "e_max": "E-measure, max",
    "mae": "Mean absolute error",
    "mdice": "Dice, mean over thresholds",
    "dice_05": "Dice at 0.5",
    "miou_05": "IoU at 0.5",
    "miou_mean": "IoU, mean over thresholds",
}
"""Scores of soft maps by their key in `Scores.saliency`."""


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class as fractions 0..1; None where a score is undefined.

    Attributes:
        pixels: Pixels of the class in the reference.
        predicted: Labelled pixels that are predicted as the class.
        unmapped: Pixels of the class in the reference without a class in the prediction.
        boundary_iou: IoU of its outlines; None if not computed.
    """

    id: int
    name: str
    color: tuple[int, int, int]
    iou: float | None
    f1: float | None
    precision: float | None
    recall: float | None
    pixels: int
    predicted: int
    unmapped: int
    boundary_iou: float | None = None

    @property
    def absent(self) -> bool:
        """The class is neither in the reference nor in the prediction."""
        return not self.pixels and not self.predicted

    @property
    def stray(self) -> bool:
        """The class is in the prediction but not in the reference."""
        return not self.pixels and self.predicted > 0


@dataclass(frozen=True)
class Scores:
    """Scores of a prediction; see `ConfusionMatrix` for classes that do not occur.

    Attributes:
        miou: Mean IoU over the classes in the reference.
        macc: Mean recall over the classes in the reference.
        accuracy: Correct fraction of the labelled pixels.
        f1: Mean F1 over the classes in the reference.
        miou_with_strays: Mean IoU in which classes that are only in the prediction count as 0.
        confusion: K rows (reference) of K pixel counts (prediction).
        boundary_miou: Mean boundary IoU over the classes in the reference.
        boundary_px: Width of the outlines in pixels.
        saliency: Scores of a soft map by the keys of `SALIENCY_NAMES`.
        intervals: Bootstrap intervals of the scores above.
        area: Area-adjusted accuracy of the whole map.
        calibration: Calibration curve.
        groups: Scores per domain, or per scene if there are no domains.
        scenes: Scores per scene.
    """

    miou: float | None
    macc: float | None
    accuracy: float | None
    f1: float | None
    miou_with_strays: float | None
    classes: list[ClassScore]
    confusion: list[list[int]]
    boundary_miou: float | None = None
    boundary_px: int | None = None
    saliency: dict[str, Any] | None = None
    intervals: Intervals | None = None
    area: AreaEstimate | None = None
    calibration: Reliability | None = None
    groups: Mapping[str, Scores] = field(default_factory=dict)
    scenes: Mapping[str, Scores] = field(default_factory=dict)

    @property
    def pixels(self) -> int:
        """Number of labelled pixels."""
        return sum(row.pixels for row in self.classes)

    @property
    def unmapped(self) -> int:
        """Number of labelled pixels without a class in the prediction."""
        return sum(row.unmapped for row in self.classes)

    @property
    def present(self) -> list[ClassScore]:
        """Classes in the reference, over which the means are taken."""
        return [row for row in self.classes if row.pixels]

    def to_json(self) -> dict[str, Any]:
        """Return the scores as in `--json` and `report.json`."""
        document: dict[str, Any] = {
            **{name: getattr(self, name) for name in _MEANS},
            "pixels": self.pixels,
            "unmapped": self.unmapped,
            "classes": [asdict(row) | {"color": list(row.color)} for row in self.classes],
            "confusion": self.confusion,
        }
        if self.boundary_px is not None:
            document |= {"boundary_miou": self.boundary_miou, "boundary_px": self.boundary_px}
        if self.saliency is not None:
            document["saliency"] = self.saliency
        for name in _PARTS:
            part = getattr(self, name)
            if part is not None:
                document[name] = asdict(part)
        document["groups"] = {key: part.to_json() for key, part in self.groups.items()}
        if self.scenes:
            document["scenes"] = {key: part.to_json() for key, part in self.scenes.items()}
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Scores:
        """Build scores from the output of `to_json`; missing keys become None."""
        names = (*_MEANS, "boundary_miou", "boundary_px", "saliency")
        values: dict[str, Any] = {name: document.get(name) for name in names}
        values["classes"] = [
            ClassScore(**row | {"color": tuple(row["color"])}) for row in document["classes"]
        ]
        for name in ("groups", "scenes"):
            parts = document.get(name, {})
            values[name] = {key: cls.from_json(part) for key, part in parts.items()}
        for name, kind in _PARTS.items():
            values[name] = kind.from_json(document[name]) if name in document else None
        return cls(confusion=document["confusion"], **values)


_MEANS = ("miou", "macc", "accuracy", "f1", "miou_with_strays")
_PARTS: dict[str, Any] = {
    "intervals": Intervals,
    "area": AreaEstimate,
    "calibration": Reliability,
}

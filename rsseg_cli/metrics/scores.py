"""What a score is: the numbers of one comparison, ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rsseg_cli.metrics.area import AreaEstimate
from rsseg_cli.metrics.bootstrap import Intervals
from rsseg_cli.metrics.calibration import Reliability


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class, as shares 0..1; None where nothing defines them.

    Attributes:
        pixels: Pixels of the class in the truth.
        predicted: Pixels of the class in the prediction, where there is truth.
        unmapped: Pixels of the class in the truth without a class in the prediction.
        boundary_iou: IoU of its outlines, where it was asked for.
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
        """Neither in the truth nor in the prediction."""
        return not self.pixels and not self.predicted

    @property
    def stray(self) -> bool:
        """Predicted where the truth has none of it."""
        return not self.pixels and self.predicted > 0


@dataclass(frozen=True)
class Scores:
    """Scores of a prediction; `ConfusionMatrix` says how classes that do not occur are treated.

    Attributes:
        miou: Mean IoU over the classes in the truth.
        macc: Mean recall over the classes in the truth.
        accuracy: Share of labelled pixels with the right class.
        f1: Mean F1 over the classes in the truth.
        miou_with_strays: Mean IoU with classes that are only predicted counted as 0.
        confusion: K rows (truth) of K pixel counts (prediction).
        boundary_miou: Mean boundary IoU over the classes in the truth.
        boundary_px: Width in pixels of the outlines that it compares.
        saliency: Scores of a soft map by name.
        intervals: Bootstrap intervals of the scores above.
        area: Area-adjusted accuracy of the whole map.
        calibration: How sure the model was, and how often right.
        groups: Scores per domain, or per scene where there are no domains.
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
        """Number of labelled pixels on which the prediction says nothing."""
        return sum(row.unmapped for row in self.classes)

    @property
    def present(self) -> list[ClassScore]:
        """The classes in the truth: those that the means run over."""
        return [row for row in self.classes if row.pixels]

    def to_json(self) -> dict[str, Any]:
        """Give the score object that `--json` prints and `report.json` holds."""
        found: dict[str, Any] = {
            "miou": self.miou,
            "macc": self.macc,
            "accuracy": self.accuracy,
            "f1": self.f1,
            "miou_with_strays": self.miou_with_strays,
            "pixels": self.pixels,
            "unmapped": self.unmapped,
            "classes": [asdict(row) | {"color": list(row.color)} for row in self.classes],
            "confusion": self.confusion,
        }
        if self.boundary_px is not None:
            found |= {"boundary_miou": self.boundary_miou, "boundary_px": self.boundary_px}
        if self.saliency is not None:
            found["saliency"] = self.saliency
        for name in _PARTS:
            part = getattr(self, name)
            if part is not None:
                found[name] = asdict(part)
        found["groups"] = {key: part.to_json() for key, part in self.groups.items()}
        if self.scenes:
            found["scenes"] = {key: part.to_json() for key, part in self.scenes.items()}
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Scores:
        """Read a score object back; keys that it lacks were not measured."""
        known: dict[str, Any] = {name: found.get(name) for name in _NUMBERS}
        known["classes"] = [
            ClassScore(**row | {"color": tuple(row["color"])}) for row in found["classes"]
        ]
        for name in ("groups", "scenes"):
            known[name] = {key: cls.from_json(part) for key, part in found.get(name, {}).items()}
        for name, kind in _PARTS.items():
            known[name] = kind.from_json(found[name]) if name in found else None
        return cls(confusion=found["confusion"], **known)


_NUMBERS = (
    *("miou", "macc", "accuracy", "f1", "miou_with_strays"),
    *("boundary_miou", "boundary_px", "saliency"),
)
_PARTS: dict[str, Any] = {
    "intervals": Intervals,
    "area": AreaEstimate,
    "calibration": Reliability,
}

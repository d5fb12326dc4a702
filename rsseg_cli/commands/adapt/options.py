"""Options of `rsseg adapt`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rsseg_cli.commands.options import (
    ADVANCED,
    DATA,
    BandsOptions,
    FittedModelOption,
    TrainingOptions,
    option,
)


@dataclass(frozen=True, kw_only=True)
class AdaptOptions(FittedModelOption, TrainingOptions, BandsOptions):
    """Options of `rsseg adapt`."""

    tgt: tuple[str, ...] = option(
        (), "Unlabelled target scenes: file, folder or dataset; repeatable.", DATA,
        "--tgt", "-t", metavar="SCENES",
    )  # fmt: skip
    source_free: bool = option(
        False, "Train on the target alone.", DATA, setting="adapt.source_free"
    )
    gsd: float | None = option(
        None, "Resample the target to this pixel size.", DATA,
        setting="adapt.gsd_m", metavar="METRES",
    )  # fmt: skip
    report_labels: bool = option(
        False, "Report scores on labels of the target; never train on them.", ADVANCED,
        setting="adapt.report_labels",
    )  # fmt: skip

    def replaced_settings(self) -> dict[str, Any]:
        """Return the values of the options that replace settings, by `section.key`."""
        return super().replaced_settings() | {
            "adapt.bands": None if self.bands is None else f"[{self.bands}]",
            "adapt.nodata": self.nodata,
            "backbone.weights": None if self.weights is None else self.weights.resolve(),
        }

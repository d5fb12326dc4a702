"""Options of `rsseg adapt`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rsseg_cli.commands.options import (
    ADVANCED,
    DATA,
    BandsOptions,
    FittedModelOption,
    Option,
    TrainingOptions,
)


@dataclass(frozen=True, kw_only=True)
class AdaptOptions(FittedModelOption, TrainingOptions, BandsOptions):
    """Options of `rsseg adapt`."""

    tgt: Annotated[
        tuple[str, ...],
        Option(
            "Unlabelled target scenes: file, folder or dataset; repeatable.",
            DATA,
            short="-t",
            metavar="SCENES",
        ),
    ] = ()
    source_free: Annotated[
        bool,
        Option("Train on the target alone.", DATA, setting="adapt.source_free"),
    ] = False
    gsd: Annotated[
        float | None,
        Option(
            "Resample the target to this pixel size.",
            DATA,
            metavar="METRES",
            setting="adapt.gsd_m",
        ),
    ] = None
    report_labels: Annotated[
        bool,
        Option(
            "Report scores on labels of the target; never train on them.",
            ADVANCED,
            setting="adapt.report_labels",
        ),
    ] = False

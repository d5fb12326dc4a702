"""Writes the report of a finished run."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from rasterio.env import GDALVersion

from rsseg_cli import __version__
from rsseg_cli.commands.fit.dry_run import TrainingPlan
from rsseg_cli.config import RunConfig
from rsseg_cli.contract import Method
from rsseg_cli.evaluate.evaluation import Evaluation
from rsseg_cli.find import find
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.report.report import Report
from rsseg_cli.settings import Json
from rsseg_cli.training.run_folder import RunFolder
from rsseg_cli.training.step_log import TrainingResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(
    folder: RunFolder,
    config: RunConfig,
    plan: TrainingPlan,
    result: TrainingResult,
    *,
    figures: Mapping[str, Figure],
    remarks: Sequence[str],
    evaluation: Evaluation | None,
) -> None:
    """Write the report of a run: scores of the best model, curves, figures of the method.

    Args:
        folder: The run folder.
        config: Settings of the run.
        plan: Plan of the run; its warnings become remarks.
        result: Result of the training loop.
        figures: Figures of the command, shown before the method's.
        remarks: Remarks of the command.
        evaluation: Evaluation of the best model on the validation set, tile by tile.
    """
    records = folder.records()
    method = find("methods", config.method.name, Method)
    best = result.best
    about: dict[str, Any] = {"model": plan.model, "data": plan.source, "training": plan.training}
    about |= {name: value for name, value in asdict(result).items() if name not in ("best", "last")}
    notes = [*plan.warnings, *remarks]
    if best is not None:
        notes.append(f"scores of step {best['step']}, the best on the validation set")
    if getattr(config.backbone, "pretrained", True) is False:
        notes.append("the backbone was initialised at random (--no-pretrained)")
    Report(
        title=str(folder.path),
        scores=None if best is None or "miou" not in best else _scores(best, evaluation),
        subtitle="scores on the validation set",
        remarks=notes,
        records=records,
        pictures={
            **figures,
            **(evaluation.gallery.pictures(evaluation.classes) if evaluation else {}),
            **dict(method.figures(records)),
        },
        config=config.to_json(),
        about=about | versions(),
    ).write(folder.report)


def _scores(best: dict[str, Json], evaluation: Evaluation | None) -> Scores:
    """Return the scores of the best model with the details of its evaluation."""
    scores = Scores.from_json(best)
    if evaluation is None or not evaluation.scenes:
        return scores
    detailed = evaluation.scores()
    return replace(
        scores,
        groups=detailed.groups,
        scenes=detailed.scenes,
        intervals=detailed.intervals,
        calibration=detailed.calibration,
    )


def versions() -> dict[str, str]:
    """Return the versions and the hardware that the numbers depend on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "rsseg": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "gdal": str(GDALVersion.runtime()),
        "hardware": f"{device}, {platform.machine()}",
    }

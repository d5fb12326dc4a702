"""The report that a finished run leaves."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from rasterio.env import GDALVersion

from rsseg_cli import __version__
from rsseg_cli.config import RunConfig
from rsseg_cli.contract import Method
from rsseg_cli.evaluate.evaluation import Evaluation
from rsseg_cli.find import find
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.plain import Json
from rsseg_cli.report.report import Report
from rsseg_cli.run.plan import Plan
from rsseg_cli.training.folder import RunFolder
from rsseg_cli.training.meter import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(
    folder: RunFolder,
    config: RunConfig,
    plan: Plan,
    outcome: Outcome,
    *,
    pictures: Mapping[str, Figure] | None = None,
    remarks: Sequence[str] = (),
    review: Evaluation | None = None,
) -> None:
    """Write the run's report: scores of the kept model, curves, the method's own pictures.

    Args:
        folder: The run.
        config: Its settings.
        plan: What was to be done.
        outcome: What was done.
        pictures: More pictures, before the method's.
        remarks: More to know.
        review: A closer look at the held-back ground.
    """
    records = folder.records()
    method = find("methods", config.method.name, Method)
    best = outcome.best
    about: dict[str, Any] = {"model": plan.model, "data": plan.source, "training": plan.training}
    about |= {
        name: value for name, value in asdict(outcome).items() if name not in ("best", "last")
    }
    said = [*plan.warnings, *remarks]
    if best is not None:
        said.append(f"scores of step {best['step']}, the best on the held-back ground")
    if getattr(config.backbone, "pretrained", True) is False:
        said.append("the backbone started at random (--no-pretrained)")
    Report(
        title=str(folder.path),
        scores=None if best is None or "miou" not in best else _scores(best, review),
        subtitle="validation on held-back ground",
        remarks=said,
        records=records,
        pictures={
            **(pictures or {}),
            **(review.gallery.pictures(review.classes) if review else {}),
            **dict(method.figures(records)),
        },
        config=config.document(),
        about=about | versions(),
    ).write(folder.report)


def _scores(best: dict[str, Json], review: Evaluation | None) -> Scores:
    """Read the scores of the kept model, and put beside them what a closer look has found."""
    scores = Scores.from_json(best)
    if review is None or not review.scenes:
        return scores
    closer = review.scores()
    return replace(
        scores,
        groups=closer.groups,
        scenes=closer.scenes,
        intervals=closer.intervals,
        calibration=closer.calibration,
    )


def versions() -> dict[str, str]:
    """Name what the numbers depend on: versions and hardware."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "rsseg": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "gdal": str(GDALVersion.runtime()),
        "hardware": f"{device}, {platform.machine()}",
    }

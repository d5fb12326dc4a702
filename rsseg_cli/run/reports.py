"""The report that a finished run leaves."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

import torch
from rasterio.env import GDALVersion

from rsseg_cli import __version__
from rsseg_cli.config import RunConfig
from rsseg_cli.contract import Method
from rsseg_cli.find import find
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.report.report import Report
from rsseg_cli.run.plan import Plan
from rsseg_cli.training import distributed
from rsseg_cli.training.folder import RunFolder
from rsseg_cli.training.loop import Outcome


def write_report(folder: RunFolder, config: RunConfig, plan: Plan, outcome: Outcome) -> None:
    """Write the run's report: scores of the kept model, curves, the method's own pictures."""
    if distributed.rank() != 0:
        return
    records = folder.records()
    method = find("methods", config.method.name, Method)
    best = outcome.best
    about: dict[str, Any] = {"model": plan.model, "data": plan.source, "training": plan.training}
    about |= {
        name: value for name, value in asdict(outcome).items() if name not in ("best", "last")
    }
    remarks = list(plan.warnings)
    if best is not None:
        remarks.append(f"scores of step {best['step']}, the best on the held-back ground")
    if getattr(config.backbone, "pretrained", True) is False:
        remarks.append("the backbone started at random (--no-pretrained)")
    Report(
        title=str(folder.path),
        scores=None if best is None else Scores.from_json(best),
        subtitle="validation on held-back ground",
        remarks=remarks,
        records=records,
        pictures=dict(method.draw(records)),
        config=config.document(),
        about=about | versions(),
    ).write(folder.report)


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

"""Five ways to a model for ground without labels, and what each is worth there."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generalise.areas import Areas, make
from generalise.runs import Job, Record, Workshop
from rsseg_cli.commands.adapt import settings
from rsseg_cli.commands.adapt.adapt import prepare_adapt
from rsseg_cli.commands.adapt.options import AdaptOptions
from rsseg_cli.commands.evaluate.model_evaluation import evaluate_model
from rsseg_cli.commands.evaluate.options import EvaluateOptions
from rsseg_cli.commands.fit.fit import prepare_fit
from rsseg_cli.commands.fit.job import FitReport, RunJob, run
from rsseg_cli.commands.fit.options import FitOptions
from rsseg_cli.metrics.scores import Scores

WAYS = ("source", "longer", "adapt", "source_free", "target")
"""A fit on the source; that model fitted on, without a look at the target, for as long as adapting
takes; adapted, with the source at hand and without; and a fit on the labels of the target, which
nobody has: what could be reached."""
OF_ADAPT = {
    # What adapting gains beyond this, the target has taught.
    "longer": ("adapt.target_weight=0.0",),
    "adapt": (),
    "source_free": ("adapt.source_free=True",),
}
"""Options that distinguish the ways from a fitted model."""
VALIDATIONS = 4
"""Validations of a fit, on a part of its own ground."""


@dataclass(frozen=True)
class Ways(Workshop):
    """Goes all ways with one method and seed.

    Attributes:
        adapt_steps: Steps of an adaptation.
        more: Settings of adaptations, in the form of `--set`.
    """

    adapt_steps: int = 80
    more: tuple[str, ...] = ()

    def ground(self, job: Job) -> Areas:
        """Write the dataset files of a run."""
        return make(job.pair, data=self.data, work=self.work)

    def changes(self, job: Job, tile: int) -> list[str]:
        """List the settings of the fits and, after them, what adaptations change."""
        return [*self._of_fits(job, tile), *self._of_adaptations()]

    def _of_fits(self, job: Job, tile: int) -> list[str]:
        every = max(1, self.budget.steps // VALIDATIONS)
        held = ["data.val_fraction=0.2", f"training.validate_every={every}"]
        return [*super().changes(job, tile), *held]

    def _of_adaptations(self) -> list[str]:
        return [f"training.steps={self.adapt_steps}", *self.more]

    def run(self, job: Job) -> Record:
        """Go all ways, each from the same model if it starts from one."""
        areas = self.ground(job)
        with tempfile.TemporaryDirectory(dir=self.work, prefix="run-") as folder:
            found = {
                way: self._measure(self._prepare(way, job, areas, Path(folder)), areas)
                for way in WAYS
            }
        made = {"changes": self.changes(job, areas.tile), "data": areas.fingerprint()}
        return made | {"ways": found}

    def _prepare(self, way: str, job: Job, areas: Areas, folder: Path) -> RunJob:
        """Prepare a way's run; adaptations find the model of `source` in the folder."""
        options = FitOptions(output=folder / way, device=self.device, quiet=True)
        if way not in OF_ADAPT:
            ground = areas.source if way == "source" else areas.unlabelled
            return prepare_fit(self.settings(job, ground, self._of_fits(job, areas.tile)), options)
        changes = (f"training.steps={self.adapt_steps}", *OF_ADAPT[way], *self.more)
        model, targets = folder / "source", (areas.unlabelled,)
        config = settings.resolve(AdaptOptions(model=model, tgt=targets, settings=changes))
        return prepare_adapt(config, options)

    def _measure(self, job: RunJob, areas: Areas) -> Record:
        """Run it and score its model on target and source; also the model of the last step."""
        started = time.process_time()
        report = run(job)
        spent = time.process_time() - started
        scores = self._score(Path(report.run), [areas.tested])
        last = self._score(Path(report.run) / "last.safetensors", [areas.tested])
        source = self._score(Path(report.run), [f"{areas.source}:val"])
        return {
            "target": scores.miou,
            "ious": {row.name: row.iou for row in scores.present},
            "last": last.miou,
            "source": source.miou,
            "chosen": _chosen(report),
            "stopped": (report.result.last or {}).get("stop"),
            "cpu_s": spent,
        }

    def _score(self, model: Path, on: Sequence[str]) -> Scores:
        options = EvaluateOptions(
            model=model, on=tuple(on), overlap=0.0, device=self.device, quiet=True
        )
        report = evaluate_model(options)
        assert report.scores is not None
        return report.scores

    def tell(self, record: Record) -> str:
        """Return the result of a run in a few words."""
        return ", ".join(f"{way} {one['target']:.3f}" for way, one in record["ways"].items())


def _chosen(report: FitReport) -> Any:
    return (report.result.best or {}).get("step")

"""One run: a normal fit on the source, a normal evaluation on the target, a JSON file."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generalise import settings
from generalise.pairs import Pair, make
from rsseg_cli import config
from rsseg_cli.commands.evaluate.model_evaluation import evaluate_model
from rsseg_cli.commands.evaluate.options import EvaluateOptions
from rsseg_cli.commands.fit.fit import prepare_fit
from rsseg_cli.commands.fit.job import run
from rsseg_cli.commands.fit.options import FitOptions
from rsseg_cli.errors import Interrupted

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One run of the benchmark; `name` names its file."""

    pair: str
    backbone: str
    init: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the file, without suffix."""
        return f"{self.pair}--{self.backbone}-{self.init}--{self.method}--{self.seed}"


@dataclass(frozen=True)
class Workshop:
    """Folders, weights and budget of the runs.

    Attributes:
        data: Folder with the shared imagery.
        work: Folder for dataset files and resampled imagery.
        weights: The backbone's file; None: where it is published.
        budget: Length of a training run.
        patch: Side of a patch in pixels.
        device: auto, cpu, cuda or cuda:N.
    """

    data: Path
    work: Path
    weights: Path | None
    budget: settings.Budget
    patch: int = 4
    device: str = "cpu"

    def changes(self, job: Job, tile: int) -> list[str]:
        """List the settings of a run as `--set` takes them."""
        found = settings.changes(
            job.method, self.budget, seed=job.seed, tile=tile, patch=self.patch
        )
        # Each seed has random weights of its own, the same for all methods.
        return found if job.init == "pretrained" else [*found, f"backbone.seed={job.seed}"]

    def ground(self, job: Job) -> Pair:
        """Write the dataset files of a run."""
        return make(job.pair, data=self.data, work=self.work)

    def settings(self, job: Job, source: str, changes: Sequence[str]) -> config.RunConfig:
        """Settle what a fit does."""
        pretrained = job.init == "pretrained"
        return config.resolve(
            method=job.method.partition("+")[0],
            file=None,
            sources=[source],
            backbone=job.backbone,
            head="linear",
            weights=self.weights if pretrained else None,
            pretrained=pretrained,
            changes=changes,
        )

    def tell(self, record: Record) -> str:
        """Return the result of a run in a few words."""
        return f"mIoU {record['miou']:.3f}, {record['fit_s'] + record['evaluate_s']:.0f} s"

    def run(self, job: Job) -> Record:
        """Fit and evaluate."""
        pair = self.ground(job)
        changes = self.changes(job, pair.tile)
        chosen = self.settings(job, pair.source, changes)
        with tempfile.TemporaryDirectory(dir=self.work, prefix="run-") as folder:
            started, worked = time.perf_counter(), time.process_time()
            options = FitOptions(
                output=Path(folder), device=self.device, overwrite=True, quiet=True
            )
            prepared = prepare_fit(chosen, options)
            parameters = prepared.plan.parameters
            fitted = run(prepared)
            fit_s, cpu_s = time.perf_counter() - started, time.process_time() - worked
            on, run_folder = (pair.target,), Path(fitted.run)
            report = evaluate_model(
                EvaluateOptions(
                    model=run_folder, on=on, overlap=0.0, device=self.device, quiet=True
                )
            )
            evaluate_s = time.perf_counter() - started - fit_s
        assert report.scores is not None
        return {
            "changes": changes,
            "data": pair.fingerprint(),
            "miou": report.scores.miou,
            "ious": {row.name: row.iou for row in report.scores.present},
            "pixels": {row.name: row.pixels for row in report.scores.present},
            "trainable": parameters["tuned"],
            "head": parameters["head"],
            "fit_s": fit_s,
            "fit_cpu_s": cpu_s,
            "evaluate_s": evaluate_s,
            "about": dict(report.about),
        }


def run_all(jobs: Iterable[Job], shop: Workshop, folder: Path) -> list[Record]:
    """Run what has no result with the same settings in `folder` yet.

    A run that fails is recorded with its error, printed, and repeated the next time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted, records = list(jobs), []
    for number, job in enumerate(wanted, start=1):
        path = folder / f"{job.name}.json"
        record = _finished(path, job, shop)
        if record is None:
            record = vars(job) | _attempt(job, shop)
            _write(path, record)
            outcome = record.get("error") or shop.tell(record)
            _say(f"[{number}/{len(wanted)}] {job.name}: {outcome}")
        records.append(record)
    return records


def _finished(path: Path, job: Job, shop: Workshop) -> Record | None:
    """Read a result, None where there is none or where it was made otherwise."""
    if not path.exists():
        return None
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    if "error" in record:
        return None
    ground = shop.ground(job)
    made = (shop.changes(job, ground.tile), ground.fingerprint())
    if (record["changes"], record["data"]) != made:
        _say(f"{job.name}: its settings or data have changed, it is run again")
        return None
    return record


def _attempt(job: Job, shop: Workshop) -> Record:
    try:
        return shop.run(job)
    except Interrupted:
        raise
    except Exception as error:  # a night of runs must not end with the first that fails
        return {"error": f"{type(error).__name__}: {error}"}


def _write(path: Path, record: Record) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(record, indent=1), encoding="utf-8")
    unfinished.replace(path)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

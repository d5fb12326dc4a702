"""`adapt`: a model and unlabelled scenes in, a model that is better there out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rsseg_cli import distributed, presets
from rsseg_cli.data.joined import JoinedTiles, ProbeTiles, TargetTiles
from rsseg_cli.data.locate import take_apart
from rsseg_cli.data.pair import Part
from rsseg_cli.data.rare import RareClasses
from rsseg_cli.data.tiles import Batch, TileStream
from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.plain import Json
from rsseg_cli.report.adaptation import REPORTED, draw_adaptation
from rsseg_cli.run.evaluate import matched
from rsseg_cli.run.fit import PROBE_SEED, Fit, FitResult
from rsseg_cli.run.glance import Glance
from rsseg_cli.run.model import Fitted, build, open_model
from rsseg_cli.run.plan import Plan
from rsseg_cli.run.reports import write_report
from rsseg_cli.run.sources import Sources
from rsseg_cli.run.target_labels import labelled
from rsseg_cli.run.target_validation import TargetValidation
from rsseg_cli.run.targets import Targets
from rsseg_cli.run.validation import Validation
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.threads import Indexed
from rsseg_cli.training.checkpoint import load_model
from rsseg_cli.training.folder import RunFolder
from rsseg_cli.training.loop import Job
from rsseg_cli.training.meter import Outcome
from rsseg_cli.training.self_training import SelfTraining
from rsseg_cli.words import counted


class Adapt(Fit):
    """One adaptation, prepared as a `Fit` is; `config.adapt` says to what, and from which model."""

    def open_sources(self, data_root: Path | None) -> Sources:
        """Find the source, as the model knows it, and the target."""
        settings, data = self.config.adapt, self.config.data
        fitted = self.fitted
        if settings.source_free and fitted is None:
            raise RssegError(
                "without a source there must be a model", where="--source-free", fix="--model RUN"
            )
        if settings.source_free and fitted is not None:
            sources = Sources([], [], [], fitted.classes, fitted.model.bands)
        else:
            sources = self._labelled(data_root)
            self._require_pairs()
        self.targets = Targets.open(
            settings, sources.bands, sources.classes, tile=data.tile, data_root=data_root
        )
        self.targets.require_other(sources.train)
        self.reported = (
            labelled(self.targets.held, settings, sources.bands, sources.classes, data_root)
            if settings.report_labels
            else []
        )
        return sources

    @cached_property
    def fitted(self) -> Fitted | None:
        """The model to start from, if not from the backbone as published."""
        path = self.config.adapt.model
        weights = getattr(self.config.backbone, "weights", None)
        return None if path is None else open_model(Path(path), weights=weights)

    def _labelled(self, data_root: Path | None) -> Sources:
        """Open the labelled ground with the classes, bands and units of the model."""
        fitted = self.fitted
        if fitted is None:
            return Sources.open(self.config.data, data_root=data_root)
        known = fitted.about["sources"] if self.config.data.src == fitted.config.data.src else []
        src = [_moved(text, root) for text, root in _with_roots(self.config.data.src, known)]
        try:
            found = Sources.open(
                self.config.data.model_copy(update={"src": tuple(src)}), data_root=data_root
            )
        except UnreadableError as error:
            raise RssegError(
                f"the source of the model is not here: {error.what}",
                where=error.where or fitted.name,
                fix="--src with the data that the model was fitted on, or --source-free",
            ) from error
        _require_same(fitted, found)
        bands = fitted.model.bands
        openers = {source.opener: matched(bands, source) for source in found.sources}

        def as_model(parts: Sequence[Part]) -> list[Part]:
            return [(openers[opener], pairs) for opener, pairs in parts]

        return replace(
            found, train=as_model(found.train), validation=as_model(found.validation), bands=bands
        )

    def _require_pairs(self) -> None:
        """Refuse passes that cannot hold a tile of either domain."""
        if self.batch < 2:
            raise RssegError(
                "a pass of one tile cannot hold both domains",
                where="training.batch, training.accumulate",
                fix="training.batch=2 or more for every pass and process",
            )

    @property
    def name(self) -> str:
        """Name of the run's folder, unless the user gives another."""
        source = f"{self.sources.name}-" if self.sources.sources else ""
        return f"{self.config.method.name}-{source}to-{self.targets.name}"

    def first_model(self) -> Segmenter:
        """Make the model as it was fitted, with the method's settings of now."""
        fitted, config = self.fitted, self.config
        if fitted is None:
            return super().first_model()
        if (config.method, config.head) == (fitted.config.method, fitted.config.head):
            return fitted.model
        model = build(config, fitted.model.bands, len(fitted.classes))
        try:
            model.unpack(fitted.model.pack())
        except (RuntimeError, KeyError) as error:
            raise RssegError(
                "the model does not fit these settings of its method or head",
                where=fitted.name,
                fix="--set method... only for what changes no weights, such as method.every",
            ) from error
        return model

    def about(self) -> dict[str, Json]:
        """Say what model files tell about themselves: also what they were adapted to."""
        about = super().about()
        sources = about["sources"]
        assert isinstance(sources, list)
        return about | {"sources": [*sources, self.targets.fingerprint()]}

    def plan(self) -> Plan:
        """Say what would be done, without doing it."""
        found = super().plan()
        scenes = len(self.targets.images)
        target = f"; target {self.targets.name}, {counted(scenes, 'scene')}"
        pairs = found.pairs | {"target": scenes}
        return replace(found, source=found.source + target, pairs=pairs)

    # --- training ----------------------------------------------------------------------------
    def objective(self) -> SelfTraining:
        """Make the teacher, once."""
        return self._objective

    @cached_property
    def _objective(self) -> SelfTraining:
        config = self.config
        return SelfTraining(
            config.adapt,
            self.model,
            config.augment,
            tile=config.data.tile,
            steps=config.training.steps,
        )

    def job(self, folder: RunFolder) -> Job:
        """Put together what the loop needs."""
        self._before = folder.report / "maps" / "before.tif"
        self._after = folder.report / "maps" / "after.tif"
        job = super().job(folder)
        validate = self._validation
        validate.remember([] if self.resumed is None else _until(folder, self.resumed["step"]))
        started = self.config.adapt.model is not None
        return replace(job, validate=validate, open_probes=self._probes, rate_start=started)

    @cached_property
    def _validation(self) -> TargetValidation:
        settings, target = self.config.adapt, self.targets
        return TargetValidation(
            tiles=self.covering(target.held, target.bands(self.sources.bands)),
            source=self.validation(),
            source_shares=None if self.index is None else [float(s) for s in self.index.shares],
            start=self._objective.start,
            step=lambda: self._objective.done,
            precision=self.precision,
            threads=self.config.training.threads,
            limit=settings.collapse,
            patience=settings.patience,
            gain=target.gain,
            before=self._map_before,
            reported=self._reported(),
        )

    def _reported(self) -> Validation | None:
        """Score on labels of the target, which nothing but the log and the report sees."""
        if not self.reported:
            return None
        target, threads = self.targets, self.config.training.threads
        tiles = self.covering(self.reported, target.bands(self.sources.bands))
        return Validation(tiles, self.sources.classes, self.precision, threads, gain=target.gain)

    def _map_before(self, model: Segmenter) -> None:
        if distributed.is_main():
            self._glance.map(model, self._before)

    @cached_property
    def _glance(self) -> Glance:
        target = self.targets
        return Glance.of(
            target.train,
            target.bands(self.sources.bands),
            self.sources.classes,
            tile=self.config.data.tile,
            gain=target.gain,
            precision=self.precision,
        )

    def stream(self, batch: int, *, seed: int = 0) -> Indexed[Batch]:
        """Open batches of both domains, or of the target alone."""
        if not self.sources.train:
            return self._target(batch, seed)
        target = batch // 2
        return JoinedTiles(self._source(batch - target, seed), self._target(target, seed))

    def _source(self, batch: int, seed: int) -> TileStream:
        settings, index = self.config.adapt, self.index
        assert index is not None
        if settings.rare is not None:
            index = RareClasses.of(index, settings.rare)
        elif self.config.data.sampling != "balanced":
            index = None
        return self.tiles(self.sources.train, self.sources.bands, batch, seed=seed, index=index)

    def _target(self, batch: int, seed: int) -> TargetTiles:
        bands = self.targets.bands(self.sources.bands)
        tiles = self.tiles(self.targets.train, bands, batch, seed=seed)
        return TargetTiles(tiles, self.targets.gain)

    def _probes(self, samples: int) -> Indexed[Batch]:
        """Open what probes see: source, and every second one target once there are labels."""
        target = self._target(samples, PROBE_SEED)
        if not self.sources.train:
            return target
        return ProbeTiles(
            self._source(samples, PROBE_SEED), target, lambda: self._objective.started
        )

    # --- afterwards ----------------------------------------------------------------------------
    def report(self, folder: RunFolder, shown: Plan, outcome: Outcome) -> None:
        """Write the report, with what happened on the target."""
        chosen = self.model
        chosen.unpack(load_model(folder.model)[0])
        chosen.to(self.device)
        self._glance.map(chosen, self._after)
        pictures = {}
        if self._before.is_file():
            pictures["before and after"] = self._glance.draw(self._before, self._after)
        pictures |= draw_adaptation(folder.records(), self.sources.classes)
        write_report(
            folder,
            self.config,
            shown,
            outcome,
            pictures=pictures,
            remarks=_remarks(outcome, folder.records()),
            review=self.review(folder),
        )


def result(run: FitResult) -> dict[str, Any]:
    """Give what `adapt --json` prints: as `fit`, and why it stopped early, if it did."""
    return run.document() | {"stopped": stopped(run.outcome)}


def stopped(outcome: Outcome) -> str | None:
    """Say why a run ended before its last step."""
    reason = (outcome.last or {}).get("stop")
    return None if reason is None else f"stopped at step {outcome.steps:,}: {reason}"


def _remarks(outcome: Outcome, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how the model was chosen, and what became of the last one."""
    best, last = outcome.best or {}, outcome.last or {}
    remarks = [
        "the model was chosen without labels of the target: by the information that its "
        "predictions carry on held-out target tiles, less what it lost on the source, over three "
        "validations",
        f"chosen: step {best.get('step')}, merit {_number(best.get('merit'))}, source mIoU "
        f"{_number(best.get('miou'))}; last: step {outcome.steps}, merit "
        f"{_number(last.get('merit'))}, source mIoU {_number(last.get('miou'))}",
    ]
    looks = (line["val"] for line in records if "val" in line)
    first = next((look["target_labels"] for look in looks if "target_labels" in look), None)
    if first is not None:
        shown = (first, *map(_reported, (best, last)))
        start, chosen, end = (_number(one.get("miou")) for one in shown)
        remarks.append(
            f"{REPORTED} (neither a step nor the choice saw them): mIoU {start} at the first "
            f"validation, {chosen} of the chosen model, {end} of the last"
        )
    reason = stopped(outcome)
    return remarks if reason is None else [reason, *remarks]


def _reported(score: Mapping[str, Any]) -> Mapping[str, Any]:
    return score.get("target_labels") or {}


def _number(value: Json | None) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "-"


def _until(folder: RunFolder, step: int) -> list[dict[str, Json]]:
    return [line for line in folder.records() if int(str(line["step"])) <= step]


def _require_same(fitted: Fitted, found: Sources) -> None:
    """Refuse a source whose classes or units are not the model's."""
    ours, theirs = [(c.id, c.name) for c in fitted.classes], [(c.id, c.name) for c in found.classes]
    if ours != theirs:
        raise RssegError(
            "the classes of model and source differ: "
            + " / ".join(", ".join(f"{i} {name}" for i, name in one) for one in (ours, theirs)),
            where=f"{fitted.name}, {found.name}",
            fix="--src with the data that the model was fitted on, or --source-free",
        )
    if fitted.model.bands.scale != found.bands.scale:
        raise RssegError(
            f"the scale of the source is {found.bands.scale}, the model's is "
            f"{fitted.model.bands.scale}",
            where=f"{fitted.name}, {found.name}",
            fix="the same `scale` in dataset.yaml as for the fit",
        )


def _with_roots(texts: Sequence[str], known: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Pair what `--src` named with the folder that it was, or nothing."""
    roots = [str(one.get("root", "")) for one in known]
    return [(text, roots[i] if i < len(roots) else "") for i, text in enumerate(texts)]


def _moved(text: str, root: str) -> str:
    """Take the recorded folder where the text leads nowhere from here."""
    name, split, domain = take_apart(text)
    if Path(name).expanduser().exists() or name in presets.names("datasets"):
        return text
    if not root or not Path(root).is_dir():
        return text
    return ":".join([root, split or "", domain or ""]).rstrip(":")

"""Prepares a run of `rsseg adapt` from a model or a preset, and unlabelled scenes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rsseg_cli import distributed
from rsseg_cli.commands.adapt.before_after import BeforeAfterMap
from rsseg_cli.commands.adapt.model_sources import open_sources
from rsseg_cli.commands.adapt.remarks import remarks
from rsseg_cli.commands.adapt.target_labels import labelled
from rsseg_cli.commands.adapt.target_validation import TargetValidation
from rsseg_cli.commands.adapt.targets import Targets
from rsseg_cli.commands.fit.dry_run import make_plan
from rsseg_cli.commands.fit.job import ReportExtras, RunJob, balanced_weights
from rsseg_cli.commands.fit.run_folder_checks import open_run_folder, require_same_data
from rsseg_cli.commands.fit.run_tiles import PROBE_SEED, RunTiles, tiles_per_pass
from rsseg_cli.commands.fit.validation import Validation
from rsseg_cli.commands.model import LoadedModel, build, metadata, open_model, pick_device
from rsseg_cli.commands.options import TrainingOptions
from rsseg_cli.config import RunConfig
from rsseg_cli.data.pair import SourcePairs
from rsseg_cli.data.sources import Sources
from rsseg_cli.data.tiles.class_index import ClassIndex
from rsseg_cli.data.tiles.domain_batches import JoinedTiles, ProbeTiles, TargetTiles
from rsseg_cli.data.tiles.rare_class_sampling import RareClasses
from rsseg_cli.data.tiles.tile_stream import Batch, TileStream
from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.number_format import counted
from rsseg_cli.report.training_charts import draw_adaptation
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.threads import Indexed
from rsseg_cli.training.deadline import Deadline
from rsseg_cli.training.loop import Job
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.run_folder import RunFolder
from rsseg_cli.training.self_training import SelfTraining
from rsseg_cli.training.step_log import TrainingResult


def prepare_adapt(
    config: RunConfig, options: TrainingOptions, deadline: Deadline | None = None
) -> RunJob:
    """Open and check model, source and target, and prepare the run; see `prepare_fit`.

    Raises:
        RssegError: The model, the data, the settings and the run folder do not fit together.
    """
    per_pass, device = tiles_per_pass(config.training), pick_device(options.device)
    loaded = _open_start(config)
    sources = _open_sources(config, loaded, per_pass, options.data_root)
    targets, labelled_holdout = _open_targets(config, sources, options.data_root)
    of_source = f"{sources.name}-" if sources.sources else ""
    name = f"{config.method.name}-{of_source}to-{targets.name}"
    path, resumed = open_run_folder(options, config, name)
    # Reads every label once: a wrong id is found before the training starts.
    index = ClassIndex.build(sources.train) if sources.train else None
    model = _first_model(config, sources, loaded)
    fingerprints = [*sources.fingerprints(), targets.fingerprint()]
    about = metadata(config, model, sources.classes, fingerprints)
    if resumed is not None:
        require_same_data(resumed, about, path)
    if config.data.class_weights == "balanced" and index is not None:
        model.head.class_weights.copy_(balanced_weights(index))
    model.to(device)
    precision = Precision.choose(config.training.precision, device)
    tiles = RunTiles(config, sources.bands, per_pass)
    streams = DomainStreams(tiles, sources, targets, _sampling_index(config, index))
    tile, steps = config.data.tile, config.training.steps
    objective = SelfTraining(config.adapt, model, config.augment, tile=tile, steps=steps)
    folder = RunFolder(path, about)
    maps = BeforeAfterMap.of(
        folder.report / "maps",
        targets,
        sources.bands,
        sources.classes,
        tile=tile,
        precision=precision,
    )
    validation = _validation(
        tiles, sources, targets, labelled_holdout, index, objective, maps, precision
    )
    if resumed is not None:
        records = folder.records()
        validation.restore([r for r in records if int(str(r["step"])) <= resumed["step"]])
    plan, scenes = make_plan(config, sources, index, model, precision), len(targets.images)
    return RunJob(
        config=config,
        folder=folder,
        sources=sources,
        tiles=tiles,
        precision=precision,
        plan=replace(
            plan,
            source=f"{plan.source}; target {targets.name}, {counted(scenes, 'scene')}",
            pairs=plan.pairs | {"target": scenes},
        ),
        loop=Job(
            model=model,
            objective=objective,
            open_batches=streams.batches,
            open_probes=partial(streams.probes, objective=objective),
            validate=validation,
            folder=folder,
            settings=config.training,
            optimization=config.optimizer,
            device=device,
            deadline=deadline or Deadline(),
            validate_start=loaded is not None,
            multiple=2 if sources.train else 1,
        ),
        resumed=resumed,
        quiet=options.silent,
        extras=partial(_extras, folder, sources, model, maps),
    )


def _open_start(config: RunConfig) -> LoadedModel | None:
    """Open the model to start from; None: the run starts from the pretrained backbone."""
    if config.adapt.model is not None:
        weights = getattr(config.backbone, "weights", None)
        return open_model(Path(config.adapt.model), weights=weights)
    if config.adapt.source_free:
        raise RssegError(
            "without a source, a fitted model is needed", where="--source-free", fix="--model RUN"
        )
    return None


def _open_sources(
    config: RunConfig, loaded: LoadedModel | None, per_pass: int, data_root: Path | None
) -> Sources:
    """Open the labelled data; without a source, only the classes and bands of the model."""
    if loaded is not None and config.adapt.source_free:
        return Sources([], [], [], loaded.classes, loaded.model.bands)
    if loaded is None:
        sources = Sources.open(config.data, data_root=data_root)
    else:
        sources = open_sources(loaded, config.data, data_root)
    if per_pass < 2:
        raise RssegError(
            "a forward pass of one tile cannot hold both domains",
            where="training.batch, training.grad_accumulation",
            fix="training.batch of at least 2 for every forward pass and process",
        )
    return sources


def _open_targets(
    config: RunConfig, sources: Sources, data_root: Path | None
) -> tuple[Targets, list[SourcePairs]]:
    """Open the target; with `adapt.report_labels`, also the labels of its held-out tiles."""
    settings, bands, classes = config.adapt, sources.bands, sources.classes
    targets = Targets.open(settings, bands, classes, tile=config.data.tile, data_root=data_root)
    targets.require_other(sources.train)
    if not settings.report_labels:
        return targets, []
    return targets, labelled(targets.holdout, settings, bands, classes, data_root)


def _first_model(config: RunConfig, sources: Sources, loaded: LoadedModel | None) -> Segmenter:
    """Return the model that the run starts with; a fitted one gets the run's method settings."""
    if loaded is None:
        return build(config, sources.bands, len(sources.classes))
    if (config.method, config.head) == (loaded.config.method, loaded.config.head):
        return loaded.model
    model = build(config, loaded.model.bands, len(loaded.classes))
    try:
        model.load_adapter_state(loaded.model.adapter_state())
    except UnreadableError as error:
        raise RssegError(
            "the weights of the model do not fit these settings of its method or head",
            where=loaded.name,
            fix="--set method... only for settings that keep the weights, such as method.every",
        ) from error
    return model


def _sampling_index(config: RunConfig, index: ClassIndex | None) -> ClassIndex | None:
    """Return the index for sampling source tiles by class; None: uniformly."""
    if index is None:
        return None
    if config.adapt.rare_class_temperature is not None:
        return RareClasses.of(index, config.adapt.rare_class_temperature)
    return index if config.data.sampling == "balanced" else None


def _validation(
    tiles: RunTiles,
    sources: Sources,
    targets: Targets,
    labelled_holdout: list[SourcePairs],
    index: ClassIndex | None,
    objective: SelfTraining,
    maps: BeforeAfterMap,
    precision: Precision,
) -> TargetValidation:
    config, bands = tiles.config, targets.bands(sources.bands)

    def on_target(parts: list[SourcePairs]) -> Validation:
        covering, threads = tiles.covering(parts, bands), config.training.num_workers
        return Validation(covering, sources.classes, precision, threads, targets.unit_scale)

    def map_start(model: Segmenter) -> None:
        if distributed.is_main():
            maps.write(model, maps.before)

    return TargetValidation(
        target=on_target(targets.holdout),
        source=Validation.of(sources, tiles, precision),
        source_shares=None if index is None else [float(share) for share in index.shares],
        objective=objective,
        settings=config.adapt,
        map_start=map_start,
        reported=on_target(labelled_holdout) if labelled_holdout else None,
    )


@dataclass(frozen=True)
class DomainStreams:
    """Opens batches of source and target, or of the target alone where `sources.train` is empty.

    Source tiles are sampled by class with an `index`, else uniformly.
    """

    tiles: RunTiles
    sources: Sources
    targets: Targets
    index: ClassIndex | None

    def batches(self, batch: int) -> Indexed[Batch]:
        """Open training batches; half of their tiles, rounded down, are of the target."""
        count = self.tiles.micro_batches(batch)
        if not self.sources.train:
            return self._target(batch, micro_batches=count)
        target = batch // 2
        source = self._source(batch - target, micro_batches=count)
        return JoinedTiles(source, self._target(target, micro_batches=count))

    def probes(self, samples: int, objective: SelfTraining) -> Indexed[Batch]:
        """Open probes of the source; with pseudo-labels, every second one is of the target."""
        target = self._target(samples, PROBE_SEED)
        if not self.sources.train:
            return target
        return ProbeTiles(self._source(samples, PROBE_SEED), target, lambda: objective.started)

    def _source(self, batch: int, seed: int = 0, micro_batches: int = 1) -> TileStream:
        return self.tiles.random(
            self.sources.train, batch, seed=seed, index=self.index, micro_batches=micro_batches
        )

    def _target(self, batch: int, seed: int = 0, micro_batches: int = 1) -> TargetTiles:
        bands = self.targets.bands(self.sources.bands)
        tiles = self.tiles.random(
            self.targets.train, batch, bands=bands, seed=seed, micro_batches=micro_batches
        )
        return TargetTiles(tiles, self.targets.unit_scale)


def _extras(
    folder: RunFolder,
    sources: Sources,
    model: Segmenter,
    maps: BeforeAfterMap,
    result: TrainingResult,
) -> ReportExtras:
    """Draw the maps before and after and the curves on the target, and write the remarks."""
    maps.write(model, maps.after)
    figures = {"before and after": maps.draw()} if maps.before.is_file() else {}
    records = folder.records()
    figures |= draw_adaptation(records, sources.classes)
    return ReportExtras(figures, remarks(result, records))

"""Prepares a run of `rsseg fit` from settings and labelled data."""

from __future__ import annotations

from functools import partial

from rsseg_cli.commands.fit.dry_run import make_plan
from rsseg_cli.commands.fit.job import RunJob, balanced_weights
from rsseg_cli.commands.fit.run_folder_checks import open_run_folder, require_same_data
from rsseg_cli.commands.fit.run_tiles import PROBE_SEED, RunTiles, tiles_per_pass
from rsseg_cli.commands.fit.validation import Validation
from rsseg_cli.commands.model import build, metadata, pick_device
from rsseg_cli.commands.options import TrainingOptions
from rsseg_cli.config import RunConfig
from rsseg_cli.data.sources import Sources
from rsseg_cli.data.tiles.augment import Augment
from rsseg_cli.data.tiles.class_index import ClassIndex
from rsseg_cli.data.tiles.tile_stream import TileStream
from rsseg_cli.training.deadline import Deadline
from rsseg_cli.training.loop import Job
from rsseg_cli.training.objectives import Supervised
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.run_folder import RunFolder


def prepare_fit(
    config: RunConfig, options: TrainingOptions, deadline: Deadline | None = None
) -> RunJob:
    """Open and check the data, build the model, and prepare the run.

    Args:
        config: The settings, including those that options replace.
        options: For the data root, the run folder, the device and the output.
        deadline: Time limit of the run.

    Raises:
        RssegError: The data, the settings and the run folder do not fit together.
    """
    per_pass, device = tiles_per_pass(config.training), pick_device(options.device)
    sources = Sources.open(config.data, data_root=options.data_root)
    path, resumed = open_run_folder(options, config, f"{config.method.name}-{sources.name}")
    # Reads every label once: a wrong id is found before the training starts.
    index = ClassIndex.build(sources.train)
    model = build(config, sources.bands, len(sources.classes))
    about = metadata(config, model, sources.classes, sources.fingerprints())
    if resumed is not None:
        require_same_data(resumed, about, path)
    if config.data.class_weights == "balanced":
        model.head.class_weights.copy_(balanced_weights(index))
    precision = Precision.choose(config.training.precision, device)
    tiles = RunTiles(config, sources.bands, per_pass)
    sampling = index if config.data.sampling == "balanced" else None

    def open_batches(batch: int) -> TileStream:
        count = tiles.micro_batches(batch)
        return tiles.random(sources.train, batch, index=sampling, micro_batches=count)

    folder = RunFolder(path, about)
    return RunJob(
        config=config,
        folder=folder,
        sources=sources,
        tiles=tiles,
        precision=precision,
        plan=make_plan(config, sources, index, model, precision),
        loop=Job(
            model=model.to(device),
            objective=Supervised(Augment(config.augment, tile=config.data.tile)),
            open_batches=open_batches,
            open_probes=partial(tiles.random, sources.train, seed=PROBE_SEED, index=sampling),
            validate=Validation.of(sources, tiles, precision),
            folder=folder,
            settings=config.training,
            optimization=config.optimizer,
            device=device,
            deadline=deadline or Deadline(),
        ),
        resumed=resumed,
        quiet=options.silent,
    )

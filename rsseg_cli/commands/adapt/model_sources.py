"""Opens the data that a model was fitted on, or other labelled data with its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

from rsseg_cli import presets
from rsseg_cli.commands.evaluate.band_matching import match_bands
from rsseg_cli.commands.evaluate.class_matching import require_same_classes
from rsseg_cli.commands.model import LoadedModel
from rsseg_cli.data.pair import SourcePairs
from rsseg_cli.data.resolve_source import parse_source
from rsseg_cli.data.sources import Sources
from rsseg_cli.errors import RssegError, UnreadableError


def open_sources(loaded: LoadedModel, config: Sources.Config, data_root: Path | None) -> Sources:
    """Open labelled data with the classes, bands and units of a model.

    Args:
        loaded: The model.
        config: The data; paths of the fit that do not exist are replaced by the absolute paths
            in the model file.
        data_root: Folder of the dataset presets.

    Raises:
        RssegError: The data are missing, or their classes, bands or units are not the model's.
    """
    recorded = loaded.about["sources"] if config.src == loaded.config.data.src else []
    roots = [str(source.get("root", "")) for source in recorded]
    src = tuple(map(_moved, config.src, chain(roots, repeat(""))))
    try:
        sources = Sources.open(config.model_copy(update={"src": src}), data_root=data_root)
    except UnreadableError as error:
        raise RssegError(
            f"the source of the model is missing: {error.what}",
            where=error.where or loaded.name,
            fix="--src with the data that the model was fitted on, or --source-free",
        ) from error
    where = f"{loaded.name}, {sources.name}"
    require_same_classes(
        loaded.classes,
        sources.classes,
        of="model and source",
        where=where,
        fix="--src with the data that the model was fitted on, or --source-free",
    )
    bands = loaded.model.bands
    if bands.scale != sources.bands.scale:
        raise RssegError(
            f"the scale of the source is {sources.bands.scale}, the model's is {bands.scale}",
            where=where,
            fix="the same `scale` in dataset.yaml as for the fit",
        )
    openers = {source.opener: match_bands(bands, source) for source in sources.sources}

    def as_model(parts: Sequence[SourcePairs]) -> list[SourcePairs]:
        return [(openers[opener], pairs) for opener, pairs in parts]

    return replace(
        sources, train=as_model(sources.train), validation=as_model(sources.validation), bands=bands
    )


def _moved(text: str, root: str) -> str:
    """Return a text of `--src` with the recorded folder if it does not name a dataset."""
    name, split, domain = parse_source(text)
    if Path(name).expanduser().exists() or name in presets.names("datasets"):
        return text
    if not root or not Path(root).is_dir():
        return text
    return ":".join([root, split or "", domain or ""]).rstrip(":")

"""Opens the labelled data that a fitted model was fitted on, or other data of the same classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rsseg_cli import presets
from rsseg_cli.commands.evaluate.band_matching import match_bands
from rsseg_cli.commands.model import LoadedModel
from rsseg_cli.data.pair import SourcePairs
from rsseg_cli.data.resolve_source import parse_source
from rsseg_cli.data.sources import Sources
from rsseg_cli.errors import RssegError, UnreadableError


def open_sources(loaded: LoadedModel, config: Sources.Config, data_root: Path | None) -> Sources:
    """Open labelled data with the classes, bands and units of a model.

    Args:
        loaded: The model.
        config: The data; paths of the fit that no longer lead anywhere are looked up in the
            model file.
        data_root: Folder of the dataset presets.

    Raises:
        RssegError: The data are not here, or their classes, bands or units are not the model's.
    """
    recorded = loaded.about["sources"] if config.src == loaded.config.data.src else []
    src = tuple(_moved(text, root) for text, root in _with_roots(config.src, recorded))
    try:
        sources = Sources.open(config.model_copy(update={"src": src}), data_root=data_root)
    except UnreadableError as error:
        raise RssegError(
            f"the source of the model is not here: {error.what}",
            where=error.where or loaded.name,
            fix="--src with the data that the model was fitted on, or --source-free",
        ) from error
    _require_same(loaded, sources)
    bands = loaded.model.bands
    openers = {source.opener: match_bands(bands, source) for source in sources.sources}

    def as_model(parts: Sequence[SourcePairs]) -> list[SourcePairs]:
        return [(openers[opener], pairs) for opener, pairs in parts]

    return replace(
        sources, train=as_model(sources.train), validation=as_model(sources.validation), bands=bands
    )


def _require_same(loaded: LoadedModel, sources: Sources) -> None:
    """Raise an error for data whose classes or units are not the model's."""
    ours, theirs = ([(c.id, c.name) for c in side.classes] for side in (loaded, sources))
    if ours != theirs:
        raise RssegError(
            "the classes of model and source differ: "
            + " / ".join(", ".join(f"{i} {name}" for i, name in side) for side in (ours, theirs)),
            where=f"{loaded.name}, {sources.name}",
            fix="--src with the data that the model was fitted on, or --source-free",
        )
    if loaded.model.bands.scale != sources.bands.scale:
        raise RssegError(
            f"the scale of the source is {sources.bands.scale}, the model's is "
            f"{loaded.model.bands.scale}",
            where=f"{loaded.name}, {sources.name}",
            fix="the same `scale` in dataset.yaml as for the fit",
        )


def _with_roots(
    texts: Sequence[str], recorded: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Pair texts of `--src` with the folders in the model file, or an empty text."""
    roots = [str(source.get("root", "")) for source in recorded]
    return [(text, roots[i] if i < len(roots) else "") for i, text in enumerate(texts)]


def _moved(text: str, root: str) -> str:
    """Return the recorded folder if the text is not a dataset here."""
    name, split, domain = parse_source(text)
    if Path(name).expanduser().exists() or name in presets.names("datasets"):
        return text
    if not root or not Path(root).is_dir():
        return text
    return ":".join([root, split or "", domain or ""]).rstrip(":")

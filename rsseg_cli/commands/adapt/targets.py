"""Unlabelled data of an adaptation: scenes, their bands, and held-out tiles."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rsseg_cli import presets
from rsseg_cli.classes import Class
from rsseg_cli.commands.adapt.resample import resampled
from rsseg_cli.commands.evaluate.band_matching import match_bands, unit_scale
from rsseg_cli.commands.predict.paths import expand
from rsseg_cli.contract import Bands
from rsseg_cli.data.infer.infer_layout import image_folder, labels_beside
from rsseg_cli.data.infer.infer_spec import ground_size_m, name_bands
from rsseg_cli.data.pair import Opener, Pair, SourcePairs
from rsseg_cli.data.resolve_source import SPEC_FILE, parse_source
from rsseg_cli.data.source import Source
from rsseg_cli.data.spec.dataset_spec import ClassSpec, DatasetSpec, Reader
from rsseg_cli.data.tiles.unlabelled import has_image, hold_out, without_labels
from rsseg_cli.errors import RssegError, RssegWarning
from rsseg_cli.number_format import counted
from rsseg_cli.raster.scene import Scene
from rsseg_cli.settings import Json
from rsseg_cli.training.adaptation import Adaptation

ALIKE = 1.25
"""Largest ratio of two pixel sizes that count as the same."""


@dataclass
class Targets:
    """The scenes of `--tgt`, opened without their labels.

    Attributes:
        name: Names of the targets, joined.
        train: Scenes to train on.
        holdout: Held-out tiles for the choice of the model.
        unit_scale: Factor from stored values to the unit of the source.
        images: Image files before resampling.
    """

    name: str
    train: list[SourcePairs]
    holdout: list[SourcePairs]
    unit_scale: float
    images: list[Path]

    @classmethod
    def open(
        cls,
        settings: Adaptation,
        bands: Bands,
        classes: Sequence[Class],
        *,
        tile: int,
        data_root: Path | None,
    ) -> Targets:
        """Open the scenes and check that they fit the model.

        Raises:
            RssegError: No scene is named or found, bands are missing, or no pixel is valid.
        """
        if not settings.tgt:
            raise RssegError(
                "no target to adapt to",
                fix="--tgt SCENES: files, folders, quoted patterns or a dataset",
            )
        opened = [_open(text, settings, bands, classes, data_root) for text in settings.tgt]
        scales = {unit_scale(bands.scale, source.spec.scale) for source, _ in opened}
        if len(scales) > 1:
            raise RssegError(
                "the targets differ in scale",
                where=", ".join(settings.tgt),
                fix="one run for each, or the same `scale` in every dataset.yaml",
            )
        images = [pair.image for _, (_, pairs) in opened for pair in pairs]
        name = "+".join(source.spec.name for source, _ in opened)
        with ExitStack() as cleanup:
            folder = Path(tempfile.mkdtemp(prefix="rsseg-"))
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
            parts = [_resample(source, part, bands, settings, folder) for source, part in opened]
            parts = [(opener, _with_image(opener, pairs)) for opener, pairs in parts]
            _check_compatible(parts, bands)
            train, holdout = hold_out([part for part in parts if part[1]], settings.holdout, tile)
            targets = cls(name, train, holdout, scales.pop(), images)
            # The VRT files in the folder are needed as long as the targets.
            weakref.finalize(targets, cleanup.pop_all().close)
        return targets

    def bands(self, model: Bands) -> Bands:
        """Return the model's bands in the unit of the target; their means fill missing samples."""
        return model.model_copy(
            update={"mean": tuple(mean / self.unit_scale for mean in model.mean)}
        )

    def fingerprint(self) -> dict[str, Json]:
        """Return the metadata of the target, with a hash of the files' names and sizes."""
        digest = hashlib.sha256()
        for path in self.images:
            size = path.stat().st_size if path.exists() else 0
            digest.update(f"{path.name} {size}\n".encode())
        return {
            "name": self.name,
            "labelled": False,
            "train": len(self.images),
            "fingerprint": digest.hexdigest()[:16],
        }

    def require_other(self, sources: Sequence[SourcePairs]) -> None:
        """Raise an error if all scenes of the target are labelled scenes of the source."""
        labelled = {pair.image.resolve() for _, pairs in sources for pair in pairs}
        if {path.resolve() for path in self.images} <= labelled:
            raise RssegError(
                "the target is the source: there is nothing to adapt to",
                where=self.name,
                fix="--tgt with scenes of the area to be mapped, or `rsseg fit`",
            )


def _open(
    text: str,
    settings: Adaptation,
    bands: Bands,
    classes: Sequence[Class],
    data_root: Path | None,
) -> tuple[Source, SourcePairs]:
    """Open the scenes of a text of `--tgt`, or the images of a dataset."""
    source = as_dataset(text, data_root)
    if source is not None:
        _require_split_without_labels(source, text)
        spec = source.spec.model_copy(update={"labels": (), "norm": None})
        source = replace(source, spec=spec)
        return source, without_labels(_match(bands, source, settings), source.pairs())
    scenes = _scenes(text)
    source = _describe(text, scenes, settings, bands, classes)
    opener = _match(bands, source, settings)
    pairs = [
        Pair(Path(scene).stem, Path(scene), None, None, None, opener.info(Path(scene)))
        for scene in scenes
    ]
    return source, without_labels(opener, pairs)


def _scenes(text: str) -> list[str]:
    """List the scenes of a text of `--tgt`, without label files."""
    root = Path(text).expanduser()
    if not root.is_dir():
        return expand([text])
    folder = image_folder(root)
    labels = set(map(str, labels_beside(folder)))
    return [scene for scene in expand([str(folder)]) if scene not in labels]


def as_dataset(text: str, data_root: Path | None) -> Source | None:
    """Return the dataset of a text of `--tgt`; None where it names scenes."""
    name, _, _ = parse_source(text)
    path = Path(name).expanduser()
    preset = not path.exists() and name in presets.names("datasets")
    described = path.is_dir() and (path / SPEC_FILE).is_file()
    if not preset and not described and path.suffix.lower() not in (".yaml", ".yml"):
        return None
    return Source.locate(text, data_root=data_root, holdout=0.0)


def _require_split_without_labels(source: Source, text: str) -> None:
    """Raise an error for a split that depends on labels."""
    split = source.splits.get(source.split or "")
    if split is None:
        return
    if split.blocks or any(source.splits[name].blocks for name in split.exclude):
        raise RssegError(
            f"{text} is a split that depends on labels, which adapt never opens",
            where=f"splits.{source.split} of {source.spec.name}",
            fix=f"--tgt {text.partition(':')[0]}, or a split of whole images or a box",
        )


def _describe(
    text: str, scenes: Sequence[str], settings: Adaptation, bands: Bands, classes: Sequence[Class]
) -> Source:
    """Describe scenes by the metadata of the first one."""
    with Scene.open(scenes[0], warn=False) as scene:
        named, are_assumed = name_bands(scene)
        count, numbers, gsd_m = scene.count, scene.bands, ground_size_m(scene)
    unnamed = are_assumed or not any(b.wavelength_nm or b.name in bands.names for b in named)
    if settings.bands is None and unnamed and count != len(bands):
        raise RssegError(
            f"{Path(scenes[0]).name} has {counted(count, 'band')} without names, the model reads "
            f"{len(bands)} ({' '.join(bands.names)})",
            where=scenes[0],
            fix="--bands with the numbers of these bands in the file, e.g. --bands 4,3,2",
        )
    numbers_in_order = settings.bands or (numbers if unnamed else None)
    if numbers_in_order is not None:
        ordered = zip(bands.names, bands.wavelengths_nm, numbers_in_order, strict=False)
        band_specs = [{"name": n, "wavelength_nm": w, "band": number} for n, w, number in ordered]
    else:
        band_specs = [
            band.model_dump() | {"band": number}
            for band, number in zip(named, numbers, strict=True)
        ]
    spec = DatasetSpec.model_validate(
        {
            "name": Path(text).resolve().stem if "*" not in text else Path(scenes[0]).parent.name,
            "bands": band_specs,
            "gsd_m": gsd_m,
            "reader": Reader(nodata=settings.nodata),
            "classes": [ClassSpec(id=c.id, name=c.name, color=c.color) for c in classes],
        }
    )
    return Source(spec, Path(scenes[0]).parent, holdout=0.0)


def _match(bands: Bands, source: Source, settings: Adaptation) -> Opener:
    """Return an opener with the file bands of `--bands`, else with those matched to the model's."""
    if settings.bands is not None:
        if len(settings.bands) != len(bands):
            raise RssegError(
                f"--bands names {counted(len(settings.bands), 'band')}, the model reads "
                f"{len(bands)} ({' '.join(bands.names)})",
                where="--bands",
                fix=f"{counted(len(bands), 'band number')}, in this order",
            )
        return replace(source.opener, bands=settings.bands)
    return match_bands(bands, source)


def _resample(
    source: Source, part: SourcePairs, bands: Bands, settings: Adaptation, folder: Path
) -> SourcePairs:
    """Resample scenes to `adapt.gsd_m`, or warn if their pixel size is not the model's."""
    opener, pairs = part
    if settings.gsd_m is not None:
        return opener, [resampled(opener, pair, settings.gsd_m, folder) for pair in pairs]
    gsd_m = source.spec.gsd_m
    if gsd_m is None and pairs:
        with opener.scene(pairs[0].image) as scene:
            gsd_m = ground_size_m(scene)
    if gsd_m and bands.gsd_m and not 1 / ALIKE <= gsd_m / bands.gsd_m <= ALIKE:
        warnings.warn(
            f"pixels of {source.spec.name} are {gsd_m:g} m, the model was fitted on "
            f"{bands.gsd_m:g} m: --gsd {bands.gsd_m:g} resamples them",
            RssegWarning,
            stacklevel=2,
        )
    return part


def _with_image(opener: Opener, pairs: Sequence[Pair]) -> list[Pair]:
    """Return the scenes that have a valid pixel."""
    kept = []
    for pair in pairs:
        if has_image(opener, pair):
            kept.append(pair)
        else:
            warnings.warn(f"{pair.image} has only nodata: left out", RssegWarning, stacklevel=2)
    return kept


def _check_compatible(parts: Sequence[SourcePairs], bands: Bands) -> None:
    """Raise an error without scenes; warn about another data type than the model's, unscaled."""
    pairs = [pair for _, pairs in parts for pair in pairs]
    if not pairs:
        raise RssegError(
            "the target holds no valid pixel",
            fix="check the scenes and their nodata value (--nodata)",
        )
    other = next((pair for pair in pairs if pair.info.dtype != bands.dtype), None)
    if other is not None and bands.scale is None:
        warnings.warn(
            f"{other.image.name} holds {other.info.dtype}, the model was fitted on "
            f"{bands.dtype}: values are assumed to have the same unit",
            RssegWarning,
            stacklevel=2,
        )

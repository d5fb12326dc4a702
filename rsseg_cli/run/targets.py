"""The unlabelled ground of a run: which scenes, which of their bands, which tiles are held back."""

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
from rsseg_cli.bands import Bands
from rsseg_cli.classes import Class
from rsseg_cli.config import Adapt
from rsseg_cli.data.discover import ground_size_m, name_bands
from rsseg_cli.data.discover_layout import image_folder, labels_beside
from rsseg_cli.data.locate import SPEC_FILE, take_apart
from rsseg_cli.data.pair import Opener, Pair, Part
from rsseg_cli.data.source import Source
from rsseg_cli.data.spec import ClassSpec, DatasetSpec, Reader
from rsseg_cli.data.unlabelled import has_image, hold_back, without_labels
from rsseg_cli.errors import RssegError, RssegWarning
from rsseg_cli.number_format import counted
from rsseg_cli.plain import Json
from rsseg_cli.raster.labels import open_quietly
from rsseg_cli.run.evaluate import matched, rescaling
from rsseg_cli.run.scenes import expand
from rsseg_cli.run.shrink import resampled

ALIKE = 1.25
"""Pixels count as of one size up to this ratio of their sides."""


@dataclass
class Targets:
    """What `--tgt` named, opened; nothing here knows a label.

    Attributes:
        name: Names of the targets, joined.
        train: Ground to learn from.
        held: Tiles by which the model is chosen.
        gain: Factor from stored values to the unit of the source.
        images: Files as the user has them.
    """

    name: str
    train: list[Part]
    held: list[Part]
    gain: float
    images: list[Path]

    @classmethod
    def open(
        cls,
        settings: Adapt,
        bands: Bands,
        classes: Sequence[Class],
        *,
        tile: int,
        data_root: Path | None,
    ) -> Targets:
        """Find the scenes and check that the model can read them.

        Raises:
            RssegError: Nothing is named or found, bands are missing, or no pixel is there.
        """
        if not settings.tgt:
            raise RssegError(
                "there is nothing to adapt to",
                fix="--tgt SCENES: files, folders, quoted patterns or a dataset",
            )
        opened = [_open(text, settings, bands, classes, data_root) for text in settings.tgt]
        gains = {rescaling(bands.scale, source.spec.scale) for source, _ in opened}
        if len(gains) > 1:
            raise RssegError(
                "the targets differ in scale",
                where=", ".join(settings.tgt),
                fix="one run for each, or the same `scale` in every dataset.yaml",
            )
        images = [pair.image for _, (_, pairs) in opened for pair in pairs]
        name = "+".join(source.spec.name for source, _ in opened)
        with ExitStack() as leaving:
            folder = Path(tempfile.mkdtemp(prefix="rsseg-"))
            leaving.callback(shutil.rmtree, folder, ignore_errors=True)
            parts = [_sized(source, part, bands, settings, folder) for source, part in opened]
            parts = [(opener, _with_image(opener, pairs)) for opener, pairs in parts]
            _require_alike(parts, bands)
            train, held = hold_back([part for part in parts if part[1]], settings.held_back, tile)
            found = cls(name, train, held, gains.pop(), images)
            weakref.finalize(found, leaving.pop_all().close)  # it lasts as long as the target
        return found

    def bands(self, model: Bands) -> Bands:
        """Give the model's bands in the unit of the target, for what fills missing samples."""
        return model.model_copy(update={"mean": tuple(one / self.gain for one in model.mean)})

    def fingerprint(self) -> dict[str, Json]:
        """Name the scenes: their names and sizes, hashed."""
        total = hashlib.sha256()
        for path in self.images:
            size = path.stat().st_size if path.exists() else 0
            total.update(f"{path.name} {size}\n".encode())
        return {
            "name": self.name,
            "labelled": False,
            "train": len(self.images),
            "fingerprint": total.hexdigest()[:16],
        }

    def require_other(self, sources: Sequence[Part]) -> None:
        """Refuse a target that is the source.

        Raises:
            RssegError: All its scenes are labelled ones of the source.
        """
        known = {pair.image.resolve() for _, pairs in sources for pair in pairs}
        if {path.resolve() for path in self.images} <= known:
            raise RssegError(
                "the target is the source: there is nothing to adapt to",
                where=self.name,
                fix="--tgt with scenes of the area that the model is for, or `rsseg fit`",
            )


def _open(
    text: str,
    settings: Adapt,
    bands: Bands,
    classes: Sequence[Class],
    data_root: Path | None,
) -> tuple[Source, Part]:
    """Open a dataset, of which only the images are looked for, or scenes."""
    source = as_dataset(text, data_root)
    if source is not None:
        _require_no_deal(source, text)
        bare = source.spec.model_copy(update={"labels": (), "norm": None})
        source = replace(source, spec=bare)
        return source, without_labels(_matched(bands, source, settings), source.pairs())
    scenes = _scenes(text)
    source = _describe(text, scenes, settings, bands, classes)
    opener = _matched(bands, source, settings)
    pairs = [
        Pair(Path(scene).stem, Path(scene), None, None, None, opener.place(Path(scene)))
        for scene in scenes
    ]
    return source, without_labels(opener, pairs)


def _scenes(text: str) -> list[str]:
    """List the scenes that a text of `--tgt` means; labels among them are none."""
    root = Path(text).expanduser()
    if not root.is_dir():
        return expand([text])
    folder = image_folder(root)
    labels = set(map(str, labels_beside(folder)))
    return [scene for scene in expand([str(folder)]) if scene not in labels]


def as_dataset(text: str, data_root: Path | None) -> Source | None:
    """Find the described dataset that a text of `--tgt` names; None where it names scenes."""
    name, _, _ = take_apart(text)
    path = Path(name).expanduser()
    known = not path.exists() and name in presets.names("datasets")
    described = path.is_dir() and (path / SPEC_FILE).is_file()
    if not known and not described and path.suffix.lower() not in (".yaml", ".yml"):
        return None
    return Source.locate(text, data_root=data_root, held_back=0.0)


def _require_no_deal(source: Source, text: str) -> None:
    """Refuse a split that is drawn with the help of labels."""
    split = source.splits.get(source.split or "")
    if split is None:
        return
    if split.blocks or any(source.splits[name].blocks for name in split.exclude):
        raise RssegError(
            f"{text} is ground chosen by its labels, which adapt never opens",
            where=f"splits.{source.split} of {source.spec.name}",
            fix=f"--tgt {text.partition(':')[0]}, or a split of whole images or a box",
        )


def _describe(
    text: str, scenes: Sequence[str], settings: Adapt, bands: Bands, classes: Sequence[Class]
) -> Source:
    """Make a spec for scenes that have none, by looking at the first one."""
    with open_quietly(scenes[0]) as scene:
        named, assumed = name_bands(scene)
        count, numbers, gsd_m = scene.count, scene.bands, ground_size_m(scene)
    silent = assumed or not any(b.wavelength_nm or b.name in bands.names for b in named)
    if settings.bands is None and silent and count != len(bands):
        raise RssegError(
            f"{Path(scenes[0]).name} has {counted(count, 'band')} without names, the model wants "
            f"{len(bands)} ({' '.join(bands.names)})",
            where=scenes[0],
            fix="--bands with the numbers of these bands in the file, e.g. --bands 4,3,2",
        )
    wanted = settings.bands or (numbers if silent else None)
    if wanted is not None:
        places = dict(zip(bands.names, wanted, strict=False))
        pairs = zip(bands.names, bands.wavelengths_nm, strict=True)
        listed = [
            {"name": n, "wavelength_nm": w, "band": places[n]} for n, w in pairs if n in places
        ]
    else:
        both = zip(named, numbers, strict=True)
        listed = [one.model_dump() | {"band": number} for one, number in both]
    spec = DatasetSpec.model_validate(
        {
            "name": Path(text).resolve().stem if "*" not in text else Path(scenes[0]).parent.name,
            "bands": listed,
            "gsd_m": gsd_m,
            "reader": Reader(nodata=settings.nodata),
            "classes": [ClassSpec(id=c.id, name=c.name, color=c.color) for c in classes],
        }
    )
    return Source(spec, Path(scenes[0]).parent, held_back=0.0)


def _matched(bands: Bands, source: Source, settings: Adapt) -> Opener:
    """Choose the file bands of a target: those named by the user, or of the same name or light."""
    if settings.bands is not None:
        if len(settings.bands) != len(bands):
            raise RssegError(
                f"--bands names {counted(len(settings.bands), 'band')}, the model wants "
                f"{len(bands)} ({' '.join(bands.names)})",
                where="--bands",
                fix=f"{counted(len(bands), 'band number')}, in this order",
            )
        return replace(source.opener, bands=settings.bands)
    return matched(bands, source)


def _sized(source: Source, part: Part, bands: Bands, settings: Adapt, folder: Path) -> Part:
    """Resample scenes when the user wants it; warn when their pixels are of another size."""
    opener, pairs = part
    if settings.gsd_m is not None:
        return opener, [resampled(opener, pair, settings.gsd_m, folder) for pair in pairs]
    gsd_m = source.spec.gsd_m
    if gsd_m is None and pairs:
        with opener.scene(pairs[0].image) as scene:
            gsd_m = ground_size_m(scene)
    if gsd_m and bands.gsd_m and not 1 / ALIKE <= gsd_m / bands.gsd_m <= ALIKE:
        warnings.warn(
            f"pixels of {source.spec.name} are {gsd_m:g} m, the model knows {bands.gsd_m:g} m: "
            f"--gsd {bands.gsd_m:g} resamples them",
            RssegWarning,
            stacklevel=2,
        )
    return part


def _with_image(opener: Opener, pairs: Sequence[Pair]) -> list[Pair]:
    """Leave out scenes without any pixel."""
    kept = []
    for pair in pairs:
        if has_image(opener, pair):
            kept.append(pair)
        else:
            warnings.warn(f"{pair.image} holds nodata only: left out", RssegWarning, stacklevel=2)
    return kept


def _require_alike(parts: Sequence[Part], bands: Bands) -> None:
    found = [pair for _, pairs in parts for pair in pairs]
    if not found:
        raise RssegError(
            "the target holds no valid pixel",
            fix="check the nodata value (--nodata), or the scenes",
        )
    other = next((pair for pair in found if pair.place.dtype != bands.dtype), None)
    if other is not None and bands.scale is None:
        warnings.warn(
            f"{other.image.name} holds {other.place.dtype}, the model knows {bands.dtype}: "
            "values are taken to have the same unit",
            RssegWarning,
            stacklevel=2,
        )

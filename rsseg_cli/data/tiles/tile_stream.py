"""Batches of tiles, and the random stream of them that training reads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.contract import Bands
from rsseg_cli.data.pair import Handles, Pair, SourcePairs
from rsseg_cli.data.tiles.class_index import ClassIndex
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.decode import Labels
from rsseg_cli.raster.grid import Window

Samples: TypeAlias = NDArray[Any]

TRIES = 24
"""How often a tile without any use is drawn again."""
PLACEMENTS = 16
"""How often a window that leaves the usable ground is placed again, before it is masked."""
TOGETHER = 4
"""Tiles of a batch that share the rows of a big scene stored in strips."""
BIG_PX = 2**24
"""Scenes above this many pixels do not stay in GDAL's cache between two tiles."""
TORCH_TYPES = {"float64": "float32", "uint32": "float32", "int64": "float32", "uint64": "float32"}
"""Stored types that are handed on as another one."""


@dataclass
class Batch:
    """Tiles of one size, with labels and names.

    Attributes:
        image: (B, C, H, W) samples in the stored type; missing ones hold the band's mean.
        label: (B, H, W) uint8 class indices, `IGNORE` where there is no class or no image.
        names: Scene of each tile, or nothing.
        domains: Domain of each tile, or nothing.
        seeds: Of the random numbers that change each tile after it was read (see `Augment`); or
            nothing where tiles are not changed.
    """

    image: Tensor
    label: Tensor
    names: tuple[str, ...] = ()
    domains: tuple[str | None, ...] = ()
    seeds: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Number of tiles B."""
        return len(self.image)

    def to(self, device: torch.device | str) -> Self:
        """Copy to a device, not waiting for it when the tensors are pinned."""
        return replace(
            self,
            image=self.image.to(device, non_blocking=True),
            label=self.label.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Self:
        """Move into page-locked memory, from where a GPU copies on its own."""
        return replace(self, image=self.image.pin_memory(), label=self.label.pin_memory())


class ThreadHandles(threading.local):
    """Open files of the calling thread; none travel to another process."""

    def __init__(self) -> None:
        self.handles = Handles()

    def __reduce__(self) -> tuple[type[ThreadHandles], tuple[()]]:
        return ThreadHandles, ()


class TileStream(Dataset[Batch]):
    """Endless random tiles: a tile depends on nothing but the seed, the step and its number.

    A tile lies wholly on usable ground where that has room for it; what hangs over is filled and
    ignored. Any number of threads and processes may ask for items. The tiles of a step, over all
    its micro-batches and processes, do not depend on how many of these there are.

    Args:
        parts: What to sample; a pixel of any of them has the same chance.
        bands: The channels; missing samples get the mean of theirs.
        tile: Side in pixels of a tile after scaling.
        batch: Tiles per item.
        seed: Everything random follows from it.
        scale: Range of magnification, one for all tiles of a step: windows of `tile` / scale
            pixels are read, and resized later on the device (see `Augment`).
        index: Where the classes are: with it tiles lie around a pixel of a class that is drawn
            with equal chance. Without it they lie anywhere.
        rank: Number of this process.
        world: Number of processes.
        micro_batches: Consecutive items that make up a step in each process.
    """

    def __init__(
        self,
        parts: Sequence[SourcePairs],
        bands: Bands,
        *,
        tile: int,
        batch: int,
        seed: int,
        scale: tuple[float, float] = (1.0, 1.0),
        index: ClassIndex | None = None,
        rank: int = 0,
        world: int = 1,
        micro_batches: int = 1,
    ) -> None:
        check_compatible(parts)
        self._ground = [(opener, pair) for opener, pairs in parts for pair in pairs]
        areas = np.array([pair.area for _, pair in self._ground], np.float64)
        if not areas.sum():
            raise RssegError("there are no pixels to draw tiles from")
        self._chances = areas / areas.sum()
        self._striped = np.array([_is_striped(pair, tile) for _, pair in self._ground])
        self._fill = bands.mean
        self._tile, self._batch, self._seed = tile, batch, seed
        self._scale, self._index = scale, index
        self._rank, self._world, self._micro_batches = rank, world, micro_batches
        self._files = ThreadHandles()

    def __getitem__(self, item: int) -> Batch:
        """Read the tiles of a micro-batch."""
        generator = np.random.default_rng((self._seed, 0, item // self._micro_batches))
        low, high = np.log(self._scale)
        side = max(8, round(self._tile / float(np.exp(generator.uniform(low, high)))))
        first = (item * self._world + self._rank) * self._batch
        numbers = range(first, first + self._batch)
        images, labels, pairs = zip(*(self._draw(n, side) for n in numbers), strict=True)
        return replace(stack(images, labels, pairs), seeds=tuple(map(self._tile_seed, numbers)))

    def _tile_seed(self, number: int) -> int:
        return int(np.random.default_rng((self._seed, 3, number)).integers(2**63))

    def _draw(self, number: int, side: int) -> tuple[Samples, Labels, Pair]:
        """Draw a tile until it is of use."""
        generator = np.random.default_rng((self._seed, 1, number))
        for _ in range(TRIES):
            which, x, y = self._point(generator, number)
            opener, pair = self._ground[which]
            window = place(pair, x, y, side, generator)
            handles = self._files.handles
            image, label, valid = handles.read(opener, pair, window, fill=self._fill)
            mask_outside(pair, window, image, label, valid, self._fill)
            if (label != IGNORE).any():
                break
        return image, label, pair

    def _point(self, generator: np.random.Generator, number: int) -> tuple[int, int, int]:
        """Draw a pair and a pixel (x, y) of its usable ground."""
        if self._index is not None:
            return self._index.draw(generator)
        shared = np.random.default_rng((self._seed, 2, number // TOGETHER))
        which = int(shared.choice(len(self._chances), p=self._chances))
        if self._striped[which]:
            # A strip holds whole rows: several tiles from the same rows cost one read.
            _, y = _pixel(self._ground[which][1], shared)
            x, _ = _pixel(self._ground[which][1], generator)
            return which, x, y
        chances = self._chances * ~self._striped
        which = int(generator.choice(len(chances), p=chances / chances.sum()))
        return which, *_pixel(self._ground[which][1], generator)


def _is_striped(pair: Pair, tile: int) -> bool:
    info = pair.info
    big = info.width * info.height > BIG_PX
    return big and info.block[1] >= info.width > 2 * tile


def _pixel(pair: Pair, generator: np.random.Generator) -> tuple[int, int]:
    """Draw a pixel of the usable ground, each with the same chance."""
    areas = np.array([window.width * window.height for window in pair.windows], np.float64)
    region = pair.windows[int(generator.choice(len(areas), p=areas / areas.sum()))]
    return (
        region.x + int(generator.integers(region.width)),
        region.y + int(generator.integers(region.height)),
    )


def place(pair: Pair, x: int, y: int, side: int, generator: np.random.Generator) -> Window:
    """Return a window around a pixel, as far as possible inside the scene and on usable pixels."""
    best, most = None, -1
    for _ in range(PLACEMENTS):
        window = Window(
            _start(x, side, pair.info.width, generator),
            _start(y, side, pair.info.height, generator),
            side,
            side,
        )
        inside = window.intersect(pair.info.window)
        wanted = inside.width * inside.height if inside else 0
        usable = wanted if pair.regions is None else _usable(pair, window)
        if usable > most:
            best, most = window, usable
        if usable == wanted:
            break
    assert best is not None
    return best


def _start(pixel: int, side: int, length: int, generator: np.random.Generator) -> int:
    """Draw where a window begins that holds `pixel` of an axis and stays inside if it can."""
    start = pixel - int(generator.integers(side))
    if side >= length:
        return int(generator.integers(length - side, 1))
    return min(max(start, 0), length - side)


def _usable(pair: Pair, window: Window) -> int:
    common = (window.intersect(region) for region in pair.windows)
    return sum(part.width * part.height for part in common if part)


def mask_outside(
    pair: Pair,
    window: Window,
    image: Samples,
    label: Labels,
    valid: NDArray[np.bool_],
    fill: Sequence[float],
) -> None:
    """Mask all pixels outside the usable windows, so that no pixel of another split is read."""
    if pair.regions is None:
        return
    usable = np.zeros(label.shape, np.bool_)
    for region in pair.regions:
        part = window.intersect(region)
        if part:
            part = part.shift(-window.x, -window.y)
            usable[part.y : part.bottom, part.x : part.right] = True
    if usable.all():
        return
    values = np.asarray(fill)
    if image.dtype.kind in "iu":
        limits = np.iinfo(image.dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    image[:, ~usable] = values.astype(image.dtype)[:, None]
    label[~usable] = IGNORE
    valid &= usable


def stack(images: Sequence[Samples], labels: Sequence[Labels], pairs: Sequence[Pair]) -> Batch:
    """Build a batch of samples (C, h, w) and labels (h, w) of one size."""
    image = np.stack(images)
    image = image.astype(TORCH_TYPES.get(image.dtype.name, image.dtype.name), copy=False)
    return Batch(
        image=torch.from_numpy(image),
        label=torch.from_numpy(np.stack(labels)),
        names=tuple(pair.name for pair in pairs),
        domains=tuple(pair.domain for pair in pairs),
    )


def check_compatible(parts: Sequence[SourcePairs]) -> None:
    """Check that tiles of all sources fit into one batch.

    Raises:
        RssegError: They differ in bands, type or classes, or there is no image at all.
    """
    if not any(pairs for _, pairs in parts):
        raise RssegError("there is no image to read tiles from")
    kinds = {
        (len(opener.bands), pair.info.dtype, opener.classes): pair.info.path
        for opener, pairs in parts
        for pair in pairs
    }
    if len(kinds) > 1:
        (bands, dtype, classes), (other_bands, other_dtype, other_classes) = list(kinds)[:2]
        what = (
            f"in bands: {bands} and {other_bands}"
            if bands != other_bands
            else f"in type: {dtype} and {other_dtype}"
            if dtype != other_dtype
            else f"in classes: {_names(classes)} and {_names(other_classes)}"
        )
        raise RssegError(
            f"the sources differ {what}",
            where=", ".join(list(kinds.values())[:2]),
            fix="describe both alike in a dataset.yaml of each, or convert one",
        )


def _names(classes: Sequence[Class]) -> str:
    return " ".join(f"{one.id} {one.name}" for one in classes)

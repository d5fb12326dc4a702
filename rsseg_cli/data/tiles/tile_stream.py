"""Batches of tiles, and the random stream of them for training."""

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
"""Draws of a tile until it has a labelled pixel."""
PLACEMENTS = 16
"""Placements of a window that are tried until it contains usable pixels only."""
TOGETHER = 4
"""Consecutive tiles that share the rows of a big scene stored in strips."""
BIG_PX = 2**24
"""Scenes above this many pixels do not stay in GDAL's block cache between two tiles."""
TORCH_TYPES = {"float64": "float32", "uint32": "float32", "int64": "float32", "uint64": "float32"}
"""Stored types that are converted to another one in a batch."""


@dataclass
class Batch:
    """Tiles of one size, with labels and names.

    Attributes:
        image: (B, C, H, W) samples in the stored type; missing ones hold the band's mean.
        label: (B, H, W) uint8 class indices, `IGNORE` where there is no class or no image.
        names: Scene of each tile; may be empty.
        domains: Domain of each tile; may be empty.
        seeds: Seed for the augmentation of each tile; empty if tiles are not augmented.
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
        """Copy to a device, asynchronously if the tensors are pinned."""
        return replace(
            self,
            image=self.image.to(device, non_blocking=True),
            label=self.label.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Self:
        """Copy into page-locked memory, for asynchronous copies to a GPU."""
        return replace(self, image=self.image.pin_memory(), label=self.label.pin_memory())


class ThreadHandles(threading.local):
    """Open files of the calling thread; a pickled copy has none."""

    def __init__(self) -> None:
        self.handles = Handles()

    def __reduce__(self) -> tuple[type[ThreadHandles], tuple[()]]:
        return ThreadHandles, ()


class TileStream(Dataset[Batch]):
    """Endless random tiles, safe to read from several threads and processes.

    A tile depends only on the seed, the step and its number: the tiles of a step are the same for
    any number of micro-batches and processes. Tiles contain usable pixels only, where these have
    room for a tile; other pixels are filled and ignored.

    Args:
        sources: Scenes to sample; all usable pixels are equally likely.
        bands: The channels; missing samples are replaced by their mean.
        tile: Side of a tile in pixels after resizing.
        batch: Tiles per item.
        seed: Seed of all random numbers.
        scale: Range of the magnification, which is drawn per step: windows of `tile` / scale
            pixels are read, and resized later on the device (see `Augment`).
        index: Positions of the classes; with it, tiles are drawn around a pixel of a class.
        rank: Rank of this process.
        world: Number of processes.
        micro_batches: Consecutive items per step and process.
    """

    def __init__(
        self,
        sources: Sequence[SourcePairs],
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
        check_compatible(sources)
        self._pairs = [(opener, pair) for opener, pairs in sources for pair in pairs]
        areas = np.array([pair.area for _, pair in self._pairs], np.float64)
        if not areas.sum():
            raise RssegError("there are no pixels to draw tiles from")
        self._chances = areas / areas.sum()
        self._striped = np.array([_is_striped(pair, tile) for _, pair in self._pairs])
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
        """Draw a tile until it has a labelled pixel."""
        generator = np.random.default_rng((self._seed, 1, number))
        for _ in range(TRIES):
            index, x, y = self._draw_pixel(generator, number)
            opener, pair = self._pairs[index]
            window = place_window(pair, x, y, side, generator)
            read = self._files.handles.read
            image, label, valid = read(opener, pair, window, fill=self._fill)
            mask_outside(pair, window, image, label, valid, self._fill)
            if (label != IGNORE).any():
                break
        return image, label, pair

    def _draw_pixel(self, generator: np.random.Generator, number: int) -> tuple[int, int, int]:
        """Draw a pair and one of its usable pixels: index of the pair, x, y."""
        if self._index is not None:
            return self._index.draw(generator)
        shared = np.random.default_rng((self._seed, 2, number // TOGETHER))
        index = int(shared.choice(len(self._chances), p=self._chances))
        if self._striped[index]:
            # A strip contains whole rows: several tiles from the same rows cost one read.
            _, y = _usable_pixel(self._pairs[index][1], shared)
            x, _ = _usable_pixel(self._pairs[index][1], generator)
            return index, x, y
        chances = self._chances * ~self._striped
        index = int(generator.choice(len(chances), p=chances / chances.sum()))
        return index, *_usable_pixel(self._pairs[index][1], generator)


def _is_striped(pair: Pair, tile: int) -> bool:
    info = pair.info
    big = info.width * info.height > BIG_PX
    return big and info.block[1] >= info.width > 2 * tile


def _usable_pixel(pair: Pair, generator: np.random.Generator) -> tuple[int, int]:
    """Draw a usable pixel (x, y) uniformly."""
    areas = np.array([window.width * window.height for window in pair.windows], np.float64)
    region = pair.windows[int(generator.choice(len(areas), p=areas / areas.sum()))]
    return (
        region.x + int(generator.integers(region.width)),
        region.y + int(generator.integers(region.height)),
    )


def place_window(pair: Pair, x: int, y: int, side: int, generator: np.random.Generator) -> Window:
    """Draw a window around a pixel, if possible with usable pixels only."""
    best, most = None, -1
    for _ in range(PLACEMENTS):
        window = Window(
            _start(x, side, pair.info.width, generator),
            _start(y, side, pair.info.height, generator),
            side,
            side,
        )
        inside = window.intersect(pair.info.window)
        area = inside.width * inside.height if inside else 0
        usable = area if pair.regions is None else _usable_area(pair, window)
        if usable > most:
            best, most = window, usable
        if usable == area:
            break
    assert best is not None
    return best


def _start(pixel: int, side: int, length: int, generator: np.random.Generator) -> int:
    """Draw the start of a window that contains `pixel` of an axis, inside the scene if it fits."""
    start = pixel - int(generator.integers(side))
    if side >= length:
        return int(generator.integers(length - side, 1))
    return min(max(start, 0), length - side)


def _usable_area(pair: Pair, window: Window) -> int:
    crossings = (window.intersect(region) for region in pair.windows)
    return sum(crossing.width * crossing.height for crossing in crossings if crossing)


def mask_outside(
    pair: Pair,
    window: Window,
    image: Samples,
    label: Labels,
    valid: NDArray[np.bool_],
    fill: Sequence[float],
) -> None:
    """Mask all pixels outside the usable windows, in place: they may belong to another split."""
    if pair.regions is None:
        return
    usable = np.zeros(label.shape, np.bool_)
    for region in pair.regions:
        inside = window.intersect(region)
        if inside:
            inside = inside.shift(-window.x, -window.y)
            usable[inside.y : inside.bottom, inside.x : inside.right] = True
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


def check_compatible(sources: Sequence[SourcePairs]) -> None:
    """Check that tiles of all sources fit into one batch.

    Raises:
        RssegError: They differ in bands, data type or classes, or there are no images.
    """
    if not any(pairs for _, pairs in sources):
        raise RssegError("there are no images to read tiles from")
    kinds = {
        (len(opener.bands), pair.info.dtype, opener.classes): pair.info.path
        for opener, pairs in sources
        for pair in pairs
    }
    if len(kinds) > 1:
        (bands, dtype, classes), (other_bands, other_dtype, other_classes) = list(kinds)[:2]
        difference = (
            f"in bands: {bands} and {other_bands}"
            if bands != other_bands
            else f"in type: {dtype} and {other_dtype}"
            if dtype != other_dtype
            else f"in classes: {_names(classes)} and {_names(other_classes)}"
        )
        raise RssegError(
            f"the sources differ {difference}",
            where=", ".join(list(kinds.values())[:2]),
            fix="describe both in the same way in a dataset.yaml of each, or convert one",
        )


def _names(classes: Sequence[Class]) -> str:
    return " ".join(f"{cls.id} {cls.name}" for cls in classes)

"""Tiles: pure in seed and step, on usable ground only, and covering it exactly once."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scenes import write_raster

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.contract import Bands
from rsseg_cli.data import pair as pair_module
from rsseg_cli.data.pair import Handles, Opener, Pair, SourcePairs
from rsseg_cli.data.spec.dataset_spec import Reader
from rsseg_cli.data.tiles import tile_stream as tiles_module
from rsseg_cli.data.tiles.class_index import ClassIndex
from rsseg_cli.data.tiles.domain_batches import JoinedTiles, TargetTiles
from rsseg_cli.data.tiles.tile_stream import Batch, TileStream
from rsseg_cli.data.tiles.unlabelled import without_labels
from rsseg_cli.data.tiles.validation_tiles import CoveringTiles
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.decode import LabelCode
from rsseg_cli.raster.grid import Window

CLASSES = tuple(Class(index, f"c{index}", (index, 0, 0)) for index in range(3))
OPENER = Opener((1, 2, 3), Reader(), LabelCode(CLASSES, ignore=(255,)))
BANDS = Bands(names=("x", "y", "n"), wavelengths_nm=(None,) * 3, mean=(3.0, 4.0, 5.0),
              std=(1.0,) * 3, dtype="uint16")  # fmt: skip
FILL = torch.tensor([3, 4, 5])


def scene(
    root: Path, number: int, width: int, height: int, regions: Any = None, **profile: Any
) -> Pair:
    """A scene whose pixels hold their position: 1000 + column, 1000 + row, 1000 + number."""
    rows, columns = np.mgrid[:height, :width]
    samples = np.stack([columns, rows, np.full((height, width), number)]).astype("uint16") + 1000
    image = write_raster(root / f"i{number}.tif", samples, **profile)
    ids = ((columns // 16 + rows // 16) % 2).astype("uint8")
    ids[: height // 8, : width // 8] = 2
    ids[height - 3 :] = 255
    label = write_raster(root / f"l{number}.tif", ids[None], **profile)
    return Pair(f"s{number}", image, label, "dom", regions, OPENER.place(image))


def stream(parts: list[SourcePairs], **changes: Any) -> TileStream:
    settings = {"tile": 32, "batch": 4, "seed": 7, **changes}
    return TileStream(parts, BANDS, **settings)


@pytest.fixture
def parts(tmp_path: Path) -> list[SourcePairs]:
    return [(OPENER, [scene(tmp_path, 0, 150, 90), scene(tmp_path, 1, 70, 101)])]


def positions(batch: Batch) -> list[tuple[int, int, int]]:
    """(scene, x, y) of each tile, read off its pixels."""
    first = batch.image[:, :, 0, 0].to(torch.int64) - 1000
    return [(int(n), int(x), int(y)) for x, y, n in first]


def test_a_tile_is_the_scene_it_comes_from(parts: list[SourcePairs]) -> None:
    batch = stream(parts)[3]
    assert batch.image.shape == (4, 3, 32, 32)
    assert (batch.image.dtype, batch.label.dtype) == (torch.uint16, torch.uint8)
    assert batch.domains == ("dom",) * 4
    for (number, x, y), image, label, name in zip(
        positions(batch), batch.image.to(torch.int64), batch.label, batch.names, strict=True
    ):
        assert name == f"s{number}"
        assert (image[0] == torch.arange(1000 + x, 1032 + x)).all()
        assert (image[1] == torch.arange(1000 + y, 1032 + y)[:, None]).all()
        reader = OPENER.labels(parts[0][1][number])
        assert reader is not None
        np.testing.assert_array_equal(label, reader.read(Window(x, y, 32, 32)))


def test_items_depend_on_seed_and_step_only(parts: list[SourcePairs]) -> None:
    one, other = stream(parts), stream(parts)
    for step in (5, 0, 5, 2):
        assert torch.equal(one[step].image, other[step].image)
        assert torch.equal(one[step].label, other[step].label)
    assert positions(one[0]) != positions(one[1])
    assert positions(one[0]) != positions(stream(parts, seed=8)[0])
    travelled = pickle.loads(pickle.dumps(one))
    assert torch.equal(travelled[4].image, one[4].image)
    assert torch.equal(copy.deepcopy(one)[4].image, one[4].image)


def test_threads_read_the_same(parts: list[SourcePairs]) -> None:
    source = stream(parts)
    expected = [positions(source[step]) for step in range(12)]
    with ThreadPoolExecutor(4) as pool:
        assert [positions(batch) for batch in pool.map(source.__getitem__, range(12))] == expected


def test_processes_share_out_what_one_would_read(parts: list[SourcePairs]) -> None:
    whole = stream(parts, batch=6)
    shares = [stream(parts, batch=2, rank=rank, world=3) for rank in range(3)]
    for step in range(3):
        together = torch.cat([share[step].image for share in shares])
        assert torch.equal(together, whole[step].image)


@pytest.mark.parametrize(("world", "count"), [(1, 2), (1, 4), (2, 1), (2, 2)])
def test_a_step_has_the_same_tiles_however_it_is_cut(
    parts: list[SourcePairs], world: int, count: int
) -> None:
    step, scale = 3, (0.5, 2.0)
    whole = stream(parts, batch=8, scale=scale)[step]
    size = 8 // world // count
    streams = [
        stream(parts, batch=size, scale=scale, rank=rank, world=world, micro_batches=count)
        for rank in range(world)
    ]
    cut = [of[step * count + number] for number in range(count) for of in streams]
    assert torch.equal(torch.cat([batch.image for batch in cut]), whole.image)
    assert [seed for batch in cut for seed in batch.seeds] == [*whole.seeds]
    assert len(set(whole.seeds)) == 8


def test_domains_are_augmented_apart(parts: list[SourcePairs]) -> None:
    tiles = stream(parts)
    joined = JoinedTiles(tiles, TargetTiles(tiles))[0]
    assert len(set(joined.seeds)) == joined.size == 8


def test_scales_read_larger_and_smaller_windows(parts: list[SourcePairs]) -> None:
    sides = {stream(parts, scale=(0.5, 2.0))[step].image.shape[-1] for step in range(40)}
    assert min(sides) < 20
    assert max(sides) > 50
    assert min(sides) >= 16
    assert max(sides) <= 64


L_SHAPE = (Window(0, 0, 150, 40), Window(0, 40, 60, 50))


def test_tiles_stay_on_usable_ground(tmp_path: Path) -> None:
    one = scene(tmp_path, 0, 150, 90, L_SHAPE)
    source = stream([(OPENER, [one])])
    whole = 0
    for step in range(60):
        batch = source[step]
        image = batch.image.to(torch.int64)
        outside = (image[:, 0] >= 1060) & (image[:, 1] >= 1040)
        assert not outside.any()
        blank = (image == FILL[None, :, None, None]).all(1)
        assert (batch.label[blank] == IGNORE).all()
        whole += int((~blank.flatten(1).any(1)).sum())
    assert whole >= 60 * 4 * 0.95


def test_ground_smaller_than_a_tile_is_masked(tmp_path: Path) -> None:
    one = scene(tmp_path, 0, 150, 90, (Window(20, 16, 10, 12), Window(90, 30, 12, 9)))
    for step in range(20):
        batch = stream([(OPENER, [one])])[step]
        image = batch.image.to(torch.int64) - 1000
        there = image[:, 2] == 0
        assert there.flatten(1).any(1).all()
        x, y = image[:, 0][there], image[:, 1][there]
        first = (x >= 20) & (x < 30) & (y >= 16) & (y < 28)
        second = (x >= 90) & (x < 102) & (y >= 30) & (y < 39)
        assert (first | second).all()
        assert (batch.label[~there] == IGNORE).all()


def test_a_scene_smaller_than_a_tile_is_padded(tmp_path: Path) -> None:
    one = scene(tmp_path, 0, 20, 41)
    batch = stream([(OPENER, [one])], tile=48)[0]
    image = batch.image.to(torch.int64)
    there = image[:, 2] == 1000
    assert (there.flatten(1).sum(1) == 20 * 41).all()
    assert (image.movedim(1, -1)[~there] == FILL).all()
    assert (batch.label[~there] == IGNORE).all()


def test_every_pixel_has_its_chance(parts: list[SourcePairs]) -> None:
    source = stream(parts, batch=50)
    drawn = [spot for step in range(20) for spot in positions(source[step])]
    share = np.mean([number for number, _, _ in drawn])
    assert share == pytest.approx(70 * 101 / (150 * 90 + 70 * 101), abs=0.05)
    xs = np.array([x for number, x, _ in drawn if number == 0])
    assert (np.bincount(xs // 30, minlength=4) > 60).all()


def test_useless_tiles_are_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = scene(tmp_path, 0, 150, 90)
    ids = np.full((1, 90, 150), 255, np.uint8)
    ids[0, 20:30, 20:40] = 1
    write_raster(tmp_path / "l0.tif", ids)

    def labelled(source: TileStream) -> float:
        known = torch.cat([source[step].label for step in range(20)]) != IGNORE
        return float(known.flatten(1).any(1).float().mean())

    assert labelled(stream([(OPENER, [one])])) > 0.95
    monkeypatch.setattr(tiles_module, "TRIES", 1)
    assert labelled(stream([(OPENER, [one])])) < 0.6


def test_unlabelled_scenes_and_nodata(tmp_path: Path) -> None:
    samples = np.zeros((3, 64, 200), np.uint16)
    samples[:, :, 120:] = 9
    image = write_raster(tmp_path / "a.tif", samples, nodata=0)
    one = Pair("a", image, None, None, None, OPENER.place(image))
    source = stream([without_labels(OPENER, [one])])
    for step in range(10):
        batch = source[step]
        image_ = batch.image.to(torch.int64)
        assert ((batch.label != IGNORE) == (image_[:, 0] == 9)).all()
        assert (image_ == 9).flatten(1).any(1).all()
        gone = image_[:, 0] != 9
        assert (image_.movedim(1, -1)[gone] == FILL).all()


def test_labels_are_ignored_where_the_image_is_missing(tmp_path: Path) -> None:
    one = scene(tmp_path, 0, 64, 64)
    samples = np.full((3, 64, 64), 5, np.uint16)
    samples[:, :, :32] = 0
    write_raster(tmp_path / "i0.tif", samples, nodata=0)
    (batch,) = CoveringTiles([(OPENER, [one])], BANDS, tile=64, batch=1)
    assert (batch.label[..., :32] == IGNORE).all()
    assert (batch.label[:, :60, 32:] != IGNORE).all()


def test_classes_are_counted_and_drawn_evenly(parts: list[SourcePairs]) -> None:
    index = ClassIndex.build(parts)
    truth = np.zeros(256, int)
    for one in parts[0][1]:
        reader = OPENER.labels(one)
        assert reader is not None
        truth += np.bincount(reader.read(one.place.window).ravel(), minlength=256)
    np.testing.assert_array_equal(index.counts, truth[:3])
    assert index.shares.sum() == pytest.approx(1)
    rng = np.random.default_rng(0)
    drawn = np.zeros(3)
    for _ in range(600):
        which, x, y = index.draw(rng)
        reader = OPENER.labels(parts[0][1][which])
        assert reader is not None
        drawn[reader.read(Window(x, y, 1, 1))[0, 0]] += 1
    assert (drawn > 160).all()
    balanced = stream(parts, index=index, tile=8, batch=60)[0].label
    uniform = stream(parts, tile=8, batch=60)[0].label
    assert (balanced == 2).float().mean() > 5 * (uniform == 2).float().mean()


def test_positions_stay_on_usable_ground(tmp_path: Path) -> None:
    one = scene(tmp_path, 0, 150, 90, L_SHAPE)
    index = ClassIndex.build([(OPENER, [one])])
    assert index.counts.sum() == sum(w.width * w.height for w in L_SHAPE) - 3 * 60
    for positions_ in index.positions:
        x, y = positions_[:, 1], positions_[:, 2]
        assert ((y < 40) | (x < 60)).all()


def test_an_unknown_id_is_found_before_training(tmp_path: Path) -> None:
    one = scene(tmp_path, 0, 64, 64)
    ids = np.zeros((1, 64, 64), np.uint8)
    ids[0, 60, 60] = 77
    write_raster(tmp_path / "l0.tif", ids)
    with pytest.raises(RssegError, match="77"):
        ClassIndex.build([(OPENER, [one])])


@pytest.mark.parametrize("regions", [None, L_SHAPE])
def test_covering_tiles_show_every_pixel_once(tmp_path: Path, regions: Any) -> None:
    one, other = scene(tmp_path, 0, 150, 90, regions), scene(tmp_path, 1, 20, 41)
    parts: list[SourcePairs] = [(OPENER, [one, other])]
    seen = {0: np.zeros((90, 150), int), 1: np.zeros((41, 20), int)}
    for rank in range(2):
        covering = CoveringTiles(parts, BANDS, tile=32, batch=5, rank=rank, world=2)
        for batch in covering:
            assert batch.image.shape[1:] == (3, 32, 32)
            known = batch.label != IGNORE
            image = batch.image.to(torch.int64) - 1000
            for number, count in seen.items():
                here = known & (image[:, 2] == number)
                np.add.at(count, (image[:, 1][here], image[:, 0][here]), 1)
    expected = np.ones((90, 150), int)
    expected[87:] = 0
    if regions:
        expected[40:, 60:] = 0
    np.testing.assert_array_equal(seen[0], expected)
    np.testing.assert_array_equal(seen[1], np.pad(np.ones((38, 20), int), ((0, 3), (0, 0))))


def test_files_are_opened_once_and_few_stay_open(
    parts: list[SourcePairs], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    original = Opener.scene

    def counting(self: Opener, path: Path, **options: Any) -> Any:
        opened.append(path)
        return original(self, path, **options)

    monkeypatch.setattr(pair_module.Opener, "scene", counting)
    source = stream(parts)
    for step in range(30):
        source[step]
    assert len(opened) == 2
    handles = Handles(limit=1)
    for one in parts[0][1] * 3:
        handles.read(OPENER, one, Window(0, 0, 8, 8), fill=BANDS.mean)
    assert len(opened) == 2 + 6
    handles.close()


def test_strips_of_big_scenes_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles_module, "BIG_PX", 10_000)
    strips = {"tiled": False, "blockxsize": None, "blockysize": 4}
    big = scene(tmp_path, 0, 400, 300, **strips)
    small = scene(tmp_path, 1, 80, 300)
    source = stream([(OPENER, [big, small])], tile=8, batch=4)
    shares = []
    for step in range(60):
        spots = positions(source[step])
        numbers = {number for number, _, _ in spots}
        assert len(numbers) == 1
        shares.append(numbers.pop())
        if shares[-1] == 0:
            rows = [y for _, _, y in spots]
            assert max(rows) - min(rows) < 8
            assert len({x for _, x, _ in spots}) > 1
    assert np.mean(shares) == pytest.approx(1 / 6, abs=0.12)


def test_sources_that_do_not_fit_are_named(tmp_path: Path) -> None:
    one = scene(tmp_path, 0, 64, 64)
    with pytest.raises(RssegError, match="no image"):
        stream([(OPENER, [])])
    other = Opener((1, 2), Reader(), OPENER.code)
    with pytest.raises(RssegError, match="differ in bands: 3 and 2"):
        stream([(OPENER, [one]), (other, [one])])
    fewer = Opener((1, 2, 3), Reader(), LabelCode(CLASSES[:2]))
    with pytest.raises(RssegError, match="differ in classes"):
        stream([(OPENER, [one]), (fewer, [one])])


def test_batches_travel() -> None:
    batch = Batch(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8), ("a",), ("b",))
    moved = batch.to("meta")
    assert moved.image.device.type == moved.label.device.type == "meta"
    assert (moved.names, moved.domains) == (("a",), ("b",))

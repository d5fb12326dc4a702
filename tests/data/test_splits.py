"""Spatial blocks: training and validation do not overlap, and both have every class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform as warp_points
from rasterio.warp import transform_geom
from scenes import NORTH_UP, ROTATED, SOUTH_UP, write_raster
from shapely.geometry import Polygon, shape
from shapely.ops import unary_union

from rsseg_cli.data.pair import Pair, SceneInfo
from rsseg_cli.data.source import Source
from rsseg_cli.data.splits.blocks import cut, draw, merge, subtract
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.grid import Window

UTM = rasterio.CRS.from_epsg(32633)


def scene_info(width: int, height: int, transform: Any = NORTH_UP, crs: Any = UTM) -> SceneInfo:
    return SceneInfo(f"{id(transform)}", width, height, "uint8", 3, crs, transform, (64, 64))


def ground_of(window: Window, where: SceneInfo) -> Any:
    """Bounds of a window in EPSG:32633."""
    corners = [
        where.transform @ corner
        for corner in [
            (window.x, window.y), (window.right, window.y),
            (window.right, window.bottom), (window.x, window.bottom),
        ]
    ]  # fmt: skip
    flat = Polygon(corners)
    if where.crs is None or where.crs == UTM:
        return flat
    return shape(transform_geom(where.crs, UTM, flat.segmentize(flat.length / 200)))


def dataset(root: Path, grids: dict[str, Any], labels: Any) -> Source:
    """Scenes of 200 x 160 pixels on different grids, labelled by `labels(x, y)` in UTM."""
    (root / "images").mkdir()
    (root / "labels").mkdir()
    for name, (transform, crs) in grids.items():
        samples = np.ones((3, 160, 200), np.uint8)
        write_raster(root / f"images/{name}.tif", samples, transform=transform, crs=crs)
        rows, columns = np.mgrid[0.5:160, 0.5:200]
        xs, ys = transform @ (columns.ravel(), rows.ravel())
        if crs is not None and crs != "EPSG:32633":
            xs, ys = warp_points(crs, UTM, xs, ys)
        values = labels(np.asarray(xs), np.asarray(ys)).reshape(1, 160, 200).astype(np.uint8)
        write_raster(root / f"labels/{name}.tif", values, transform=transform, crs=crs)
    return Source.locate(str(root))


def stripes(xs: Any, ys: Any) -> Any:
    """Classes 1 and 2 everywhere, the rare class 3 in two spots."""
    values = 1 + (np.floor((xs - NORTH_UP.c) / 130) % 2)
    for x, y in ((300, -300), (1500, -1200)):
        values[np.hypot(xs - NORTH_UP.c - x, ys - NORTH_UP.f - y) < 60] = 3
    return values


def counts(source: Source, pairs: list[Pair]) -> Any:
    total = np.zeros(256, int)
    for pair in pairs:
        reader = source.opener.labels(pair)
        assert reader is not None
        for window in pair.windows:
            total += np.bincount(reader.read(window).ravel(), minlength=256)
    return total


GRIDS = {
    "same": {"a": (NORTH_UP, "EPSG:32633"), "b": (NORTH_UP, "EPSG:32633")},
    "shifted": {
        "a": (NORTH_UP, "EPSG:32633"),
        "b": (NORTH_UP @ rasterio.Affine.translation(70.3, 41.8), "EPSG:32633"),
        "c": (NORTH_UP @ rasterio.Affine.scale(0.5), "EPSG:32633"),
    },
    "turned": {
        "a": (NORTH_UP, "EPSG:32633"),
        "b": (ROTATED, "EPSG:32633"),
        "c": (SOUTH_UP, "EPSG:32633"),
    },
    "degrees": {
        "a": (NORTH_UP, "EPSG:32633"),
        "b": (rasterio.Affine(1.3e-4, 0, 15.0, 0, -0.9e-4, 47.85), "EPSG:4326"),
    },
}


@pytest.mark.parametrize("kind", sorted(GRIDS))
def test_splits_do_not_overlap_on_the_map(tmp_path: Path, kind: str) -> None:
    source = dataset(tmp_path, GRIDS[kind], stripes)
    train, val = source.training_and_validation()
    learnt = unary_union([ground_of(w, p.info) for p in train for w in p.windows])
    held = unary_union([ground_of(w, p.info) for p in val for w in p.windows])
    assert learnt.intersection(held).area < 1e-6 * held.area
    share = counts(source, val).sum() / (counts(source, val) + counts(source, train)).sum()
    assert 0.1 <= share <= 0.35
    assert (counts(source, train)[:3] > 0).all()
    assert (counts(source, val)[:2] > 0).all()
    for pair in (*train, *val):
        inside = [window.intersect(pair.info.window) == window for window in pair.windows]
        assert all(inside)
        assert pair.area == sum(w.width * w.height for w in merge(pair.windows))


def test_the_same_blocks_in_every_run(tmp_path: Path) -> None:
    source = dataset(tmp_path, GRIDS["shifted"], stripes)
    again = Source.locate(f"{tmp_path}:val")
    assert again.pairs() == source.pairs("val") == source.training_and_validation()[1]


def test_scenes_without_a_crs_have_their_own_grid(tmp_path: Path) -> None:
    grids = dict.fromkeys("abc", (rasterio.Affine.identity(), None))
    source = dataset(tmp_path, grids, lambda xs, ys: 1 + (xs > 90))
    train, val = source.training_and_validation()
    whole = sum(pair.area for pair in (*train, *val))
    assert whole == 3 * 200 * 160
    assert 0.15 < sum(pair.area for pair in val) / whole < 0.32


def test_sparse_labels_are_split_by_labelled_pixels(tmp_path: Path) -> None:
    def dots(xs: Any, ys: Any) -> Any:
        """Nine small fields of two classes."""
        column, row = (xs - NORTH_UP.c) / 10, (NORTH_UP.f - ys) / 10
        near = (column % 60 < 8) & (row % 50 < 8)
        return np.where(near, 1 + (np.floor(column / 60) % 2), 255)

    source = dataset(tmp_path, {"a": (NORTH_UP, "EPSG:32633")}, dots)
    train, val = source.training_and_validation()
    learnt, held = counts(source, train), counts(source, val)
    assert (learnt[:2] > 0).all()
    assert 0.1 <= held[:2].sum() / (held + learnt)[:2].sum() <= 0.32


def test_a_single_labelled_pixel_cannot_be_split(tmp_path: Path) -> None:
    def one(xs: Any, ys: Any) -> Any:
        values = np.full(xs.shape, 255)
        values[777] = 1
        return values

    source = dataset(tmp_path, {"a": (NORTH_UP, "EPSG:32633")}, one)
    with pytest.raises(RssegError, match="the labelled area is too small"):
        source.training_and_validation()


def test_holdout_of_zero_has_no_validation(tmp_path: Path) -> None:
    dataset(tmp_path, {"a": (NORTH_UP, "EPSG:32633")}, stripes)
    source = Source.locate(str(tmp_path), holdout=0.0)
    train, val = source.training_and_validation()
    assert (train[0].regions, val) == (None, [])


def test_three_splits_with_blocks(tmp_path: Path) -> None:
    source = dataset(tmp_path, GRIDS["shifted"], stripes)
    text = source.spec.to_yaml() + (
        "splits:\n  train: {exclude: [val, test]}\n  val: {blocks: 0.2}\n  test: {blocks: 0.15}\n"
    )
    (tmp_path / "dataset.yaml").write_text(text)
    source = Source.locate(str(tmp_path))
    parts = [source.pairs(name) for name in ("train", "val", "test")]
    grounds = [
        unary_union([ground_of(w, p.info) for p in part for w in p.windows]) for part in parts
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert grounds[one].intersection(grounds[other]).area < 1e-6 * grounds[0].area
    assert all((counts(source, part)[:2] > 0).all() for part in parts)


def test_windows_lie_in_their_blocks() -> None:
    where = [
        scene_info(200, 160),
        scene_info(120, 90, NORTH_UP @ rasterio.Affine.translation(33.4, 12.6)),
    ]
    patches = cut(where, 40)
    assert {len(patch.blocks) for patch in patches} == {1}
    first = [patch for patch in patches if patch.scene == 0]
    assert sum(p.window.width * p.window.height for p in first) == 200 * 160
    by_block: dict[Any, list[Any]] = {}
    for patch in patches:
        (block,) = patch.blocks
        by_block.setdefault(block, []).append(ground_of(patch.window, where[patch.scene]))
    for block, grounds in by_block.items():
        for other, others in by_block.items():
            if block < other:
                assert unary_union(grounds).intersection(unary_union(others)).area < 1e-6


def test_drawn_blocks_balance_the_classes() -> None:
    rng = np.random.default_rng(1)
    weights = {
        (0, c, r): rng.gamma(0.4, 100, 6) * (rng.random(6) < 0.5)
        for c in range(12)
        for r in range(12)
    }
    chosen = draw(weights, 0.2, generator=np.random.default_rng(0), connected=False)
    total = np.sum(list(weights.values()), 0)
    share = np.sum([weights[block] for block in chosen], 0) / total
    assert (np.abs(share - 0.2) < 0.06).all()
    joined = draw(weights, 0.2, generator=np.random.default_rng(0), connected=True)
    share = np.sum([weights[block] for block in joined], 0) / total
    assert (share <= 0.5).all()
    neighbours = sum(any(abs(a[1] - b[1]) + abs(a[2] - b[2]) == 1 for b in joined) for a in joined)
    assert neighbours >= len(joined) - 1


def test_windows_merge_and_subtract() -> None:
    quarters = [Window(x, y, 5, 5) for x in (0, 5) for y in (0, 5)]
    assert merge(quarters) == (Window(0, 0, 10, 10),)
    left = subtract([Window(0, 0, 10, 10)], Window(3, 4, 5, 2))
    canvas = np.zeros((10, 10), int)
    for w in left:
        canvas[w.y : w.bottom, w.x : w.right] += 1
    expected = np.ones((10, 10), int)
    expected[4:6, 3:8] = 0
    np.testing.assert_array_equal(canvas, expected)

"""From `--src` to pairs: files, splits and errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from folders import PNG, folder, folder_of, image, label
from scenes import random_samples, write_raster

from rsseg_cli import presets
from rsseg_cli.classes import IGNORE
from rsseg_cli.data.resolve_source import parse_source
from rsseg_cli.data.source import Source
from rsseg_cli.data.spec.dataset_spec import DatasetSpec
from rsseg_cli.data.spec.layout import glob_files
from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.raster.grid import Window


def test_pairs_that_do_not_match_are_named(tmp_path: Path) -> None:
    folder(tmp_path)
    image(tmp_path, "images/lonely.tif")
    with pytest.raises(RssegError, match=r"no label for 1 image: lonely\.tif"):
        Source.locate(str(tmp_path)).pairs()
    (tmp_path / "images/lonely.tif").unlink()
    label(tmp_path, "labels/extra.tif")
    with pytest.raises(RssegError, match=r"no image for 1 label: extra\.tif"):
        Source.locate(str(tmp_path)).pairs()
    (tmp_path / "labels/extra.tif").unlink()
    label(tmp_path, "labels/a.png", **PNG)
    with pytest.raises(RssegError, match=r"a\.tif has 2 labels"):
        Source.locate(str(tmp_path)).pairs()
    (tmp_path / "labels/a.png").unlink()
    image(tmp_path, "images/a.png", **PNG)
    with pytest.raises(RssegError, match="two images are called"):
        Source.locate(str(tmp_path)).pairs()


def test_bands_and_types_that_differ_are_named(tmp_path: Path) -> None:
    folder(tmp_path)
    image(tmp_path, "images/b.tif", 4)
    with pytest.raises(RssegError, match=r"a\.tif has 3, b\.tif has 4"):
        Source.locate(str(tmp_path)).pairs()
    image(tmp_path, "images/b.tif", 3, "uint16")
    with pytest.raises(RssegError, match=r"b\.tif holds uint16, not uint8"):
        Source.locate(str(tmp_path)).pairs()


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="no images in images/"):
        Source.locate(str(tmp_path))
    image(tmp_path, "images/a.tif")
    with pytest.raises(UnreadableError, match="images but no labels"):
        Source.locate(str(tmp_path))
    with pytest.raises(UnreadableError, match="no such folder"):
        Source.locate(str(tmp_path / "none"))
    with pytest.raises(RssegError, match="lovedaa is not a known dataset preset"):
        Source.locate("lovedaa")
    (tmp_path / "images/a.tif").write_bytes(b"no raster")
    label(tmp_path, "labels/a.tif")
    with pytest.raises(UnreadableError, match="cannot be read"):
        Source.locate(str(tmp_path))


# --- YAML, splits and domains ---------------------------------------------------------------------

SPLIT = """\
name: tiny
root: files
bands: [{name: red}, {name: green}, {name: blue}]
classes: [{id: 1, name: one, color: [1, 1, 1]}, {id: 2, name: two, color: [2, 2, 2]}]
images: 'img/*/*.tif'
pattern: 'img/(?P<domain>\\w+)/(?P<stem>\\w+)\\.tif$'
labels: 'ann/{domain}_{stem:0>3}.tif'
splits:
  test: {listed_in: lists/test.txt}
  left: {box: [0, 0, 0.3, 1], exclude: test}
  rest: {exclude: [left, test]}
  blank: {glob: 'img/{y,z}/*', labelled: false}
"""


@pytest.fixture
def described(tmp_path: Path) -> Path:
    for name in ("x/1", "x/2", "Y/1"):
        image(tmp_path, f"files/img/{name}.tif")
    for name in ("x_001", "x_002", "Y_001"):
        label(tmp_path, f"files/ann/{name}.tif")
    (tmp_path / "files/lists").mkdir()
    (tmp_path / "files/lists/test.txt").write_text("img/x/2.tif  more\n\n")
    (tmp_path / "set.yaml").write_text(SPLIT)
    return tmp_path / "set.yaml"


def test_a_yaml_sets_paths_and_classes(described: Path) -> None:
    source = Source.locate(f"{described}:test")
    assert [pair.name for pair in source.pairs()] == ["img/x/2"]
    assert source.domains() == ["x", "y"]
    everything = Source.locate(f"{described}::y")
    (only,) = everything.pairs()
    assert (only.name, only.domain, only.label) == (
        "img/Y/1", "y", described.parent / "files/ann/Y_001.tif",
    )  # fmt: skip
    moved = described.rename(described.parent / "files" / "here.yml")
    again = Source.locate(f"{moved}", data_root=described.parent)
    assert len(again.pairs()) == 3


def test_boxes_share_no_pixel(described: Path) -> None:
    source = Source.locate(str(described))
    left, rest = source.pairs("left"), source.pairs("rest")
    assert [pair.regions for pair in left] == [(Window(0, 0, 29, 64),)] * 2
    assert [pair.regions for pair in rest] == [(Window(29, 0, 67, 64),)] * 2


@pytest.mark.parametrize(("nodata", "share"), [("", 0.5), ("none", 1.0), ("7", 0.5)])
def test_nodata_may_be_overruled(tmp_path: Path, nodata: str, share: float) -> None:
    samples = np.full((3, 64, 96), 255, np.uint8)
    samples[:, :32] = 7
    write_raster(folder_of(tmp_path / "images") / "a.tif", samples, nodata=255)
    label(tmp_path, "labels/a.tif")
    text = Source.locate(str(tmp_path)).spec.to_yaml()
    (tmp_path / "dataset.yaml").write_text(text + f"reader: {{nodata: {nodata}}}\n" * bool(nodata))
    source = Source.locate(str(tmp_path))
    with source.opener.scene(source.pairs()[0].image) as scene:
        assert scene.read(Window(0, 0, 96, 64))[1].mean() == share


def test_labels_of_another_grid_are_resampled_where_asked(tmp_path: Path) -> None:
    grid = rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000)
    coarse = grid @ rasterio.Affine.scale(2)
    ids = np.random.default_rng(3).integers(0, 4, (1, 32, 48)).astype("uint8")
    folder_of(tmp_path / "images"), folder_of(tmp_path / "labels")
    write_raster(tmp_path / "images/a.tif", random_samples(3, 64, 96), transform=grid)
    write_raster(tmp_path / "labels/a.tif", ids, transform=coarse, nodata=0)
    source = Source.locate(str(tmp_path))
    with pytest.raises(RssegError, match="48 x 32 pixels, its image 96 x 64") as caught:
        source.opener.labels(source.pairs()[0])
    assert "align: true" in str(caught.value.fix)
    (tmp_path / "dataset.yaml").write_text(source.spec.to_yaml() + "align: true\n")
    source = Source.locate(str(tmp_path))
    reader = source.opener.labels(source.pairs()[0])
    assert reader is not None
    expected = np.kron(ids[0], np.ones((2, 2), int)) - 1  # ids 1, 2, 3; 0 is empty
    expected[expected < 0] = IGNORE
    np.testing.assert_array_equal(reader.read(Window(0, 0, 96, 64)), expected)
    over = reader.read(Window(90, 60, 10, 10))
    np.testing.assert_array_equal(over[:4, :6], expected[60:, 90:])
    assert (over[4:] == IGNORE).all()
    assert (over[:, 6:] == IGNORE).all()


def test_unknown_splits_and_domains_are_named(described: Path) -> None:
    with pytest.raises(RssegError) as caught:
        Source.locate(f"{described}:tst").pairs()
    assert caught.value.fix.startswith("test")
    with pytest.raises(RssegError, match="xx is not a known domain"):
        Source.locate(f"{described}:test:xx").pairs()
    with pytest.raises(RssegError, match="belongs to test y"):
        Source.locate(f"{described}:test:y").pairs()


def test_sources_are_parsed(tmp_path: Path) -> None:
    assert parse_source("loveda") == ("loveda", None, None)
    assert parse_source("loveda:val") == ("loveda", "val", None)
    assert parse_source("casid::sub") == ("casid", None, "sub")
    odd = tmp_path / "a:b"
    odd.mkdir()
    assert parse_source(str(odd)) == (str(odd), None, None)


def test_globs(tmp_path: Path) -> None:
    names = ("ab.tif", "ac.tif", "ad.tif", "x/a.tif", "x/a.tiff", "x/y/z/a.tif", "x/._a.tif")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def hits(*patterns: str) -> list[str]:
        return sorted(
            path.relative_to(tmp_path).as_posix() for path in glob_files(tmp_path, patterns)
        )

    assert hits("a{b,c}.tif") == ["ab.tif", "ac.tif"]
    assert hits("a{b,c}.tif", "ab.*") == ["ab.tif", "ac.tif"]
    assert hits("x/**/*.tif") == ["x/a.tif", "x/y/z/a.tif"]
    assert hits("x/*.tif") == ["x/a.tif"]
    assert hits("*") == ["ab.tif", "ac.tif", "ad.tif"]


def test_loveda_as_unpacked(tmp_path: Path) -> None:
    for part in ("Train/Rural", "Train/Urban", "Val/Rural", "Test/Urban"):
        image(tmp_path, f"LoveDA/{part}/images_png/7.png", **PNG)
        if "Test" not in part:
            label(tmp_path, f"LoveDA/{part}/masks_png/7.png", (0, 1, 7), **PNG)
    train, val = Source.locate("loveda", data_root=tmp_path).training_and_validation()
    assert [pair.name for pair in train] == ["Train/Rural/images_png/7", "Train/Urban/images_png/7"]
    assert [(pair.domain, pair.regions) for pair in val] == [("rural", None)]
    assert len(Source.locate("loveda:train:urban", data_root=tmp_path).pairs()) == 1
    assert Source.locate("loveda:test", data_root=tmp_path).pairs()[0].label is None
    opener = Source.locate("loveda", data_root=tmp_path).opener
    reader = opener.labels(train[0])
    assert reader is not None
    assert set(np.unique(reader.read(Window(0, 0, 96, 64)))) == {0, 6, 255}


def test_errors_list_the_folders_tried_for_a_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RSSEG_DATA", raising=False)
    with pytest.raises(UnreadableError, match="the folder of its data is not set"):
        Source.locate("loveda")
    monkeypatch.setenv("RSSEG_DATA", str(tmp_path))
    with pytest.raises(UnreadableError) as caught:
        Source.locate("loveda")
    assert str(tmp_path / "LoveDA") in caught.value.where
    assert "zenodo" in caught.value.fix


def test_five_billion_pixels_reads_four_bands_of_cmyk_without_margin(tmp_path: Path) -> None:
    spec = presets.read(presets.find("datasets", "fbp_gf2")).parse(DatasetSpec)
    assert spec.reader.box == (60, 54, 7260, 6854)
    small = spec.model_copy(
        update={"reader": spec.reader.model_copy(update={"box": (6, 5, 92, 60)})}
    )
    names = ("GF2_PMS1__L1A0001064454-MSS1", "GF2_PMS2__L1A0000564539-MSS2")
    samples = random_samples(4, 64, 96)
    for name in names:
        path = folder_of(tmp_path / "Image__8bit_NirRGB") / f"{name}.tif"
        write_raster(path, samples, photometric="cmyk", crs=None, transform=None)
        label(tmp_path, f"Annotation__index/{name}_24label.png", (0, 1, 24), **PNG)
    source = Source(small, tmp_path)
    train, test = source.training_and_validation()
    assert [pair.name for pair in train] == [names[1]]
    assert [pair.name for pair in test] == [names[0]]
    assert (train[0].info.width, train[0].info.height) == (86, 55)
    with source.opener.scene(train[0].image) as scene:
        got, valid = scene.read(Window(0, 0, 86, 55))
    np.testing.assert_array_equal(got, samples[:, 5:60, 6:92])
    assert valid.all()
    reader = source.opener.labels(train[0])
    assert reader is not None
    ids = np.resize(np.array([255, 0, 23], np.uint8), (8, 12)).repeat(8, 0).repeat(8, 1)
    np.testing.assert_array_equal(reader.read(Window(0, 0, 86, 55)), ids[5:60, 6:92])

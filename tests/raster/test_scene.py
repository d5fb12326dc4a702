"""Scenes are read as they are stored, and missing pixels are known."""

from __future__ import annotations

import zipfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from scenes import NORTH_UP, ROTATED, SOUTH_UP, WriteScene, random_samples

from rsseg_cli.errors import RssegError, RssegWarning, UnreadableError
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.scene import Scene


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64", "uint32"])
def test_reads_what_is_stored(write_scene: WriteScene, dtype: str) -> None:
    samples = random_samples(3, 71, 101, dtype)
    with Scene.open(write_scene(samples)) as scene:
        assert (scene.width, scene.height, scene.count, scene.dtype) == (101, 71, 3, dtype)
        assert scene.block == (64, 64)
        read, valid = scene.read(Window(13, 7, 50, 60))
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, samples[:, 7:67, 13:63])
    assert valid.all()


@pytest.mark.parametrize(
    ("namespace", "tags", "time"),
    [
        (None, {"TIFFTAG_DATETIME": "2019:07:03 10:30:00"}, datetime(2019, 7, 3, 10, 30)),
        ("IMAGERY", {"ACQUISITIONDATETIME": "2020-01-02 03:04:05"}, datetime(2020, 1, 2, 3, 4, 5)),
        (None, {"TIFFTAG_DATETIME": "some day"}, None),
        (None, {}, None),
    ],
)
def test_time_of_acquisition(
    write_scene: WriteScene, namespace: str | None, tags: dict[str, str], time: datetime | None
) -> None:
    path = write_scene(random_samples(1, 9, 11))
    with rasterio.open(path, "r+") as file:
        file.update_tags(ns=namespace, **tags)
    with Scene.open(path) as scene:
        assert scene.acquired == (time and time.replace(tzinfo=UTC))


@pytest.mark.parametrize("transform", [NORTH_UP, ROTATED, SOUTH_UP], ids=["north", "turn", "south"])
def test_transform_is_the_file_s_bit_for_bit(
    write_scene: WriteScene, transform: rasterio.Affine
) -> None:
    path = write_scene(random_samples(1, 9, 11), transform=transform)
    with Scene.open(path) as scene, rasterio.open(path) as file:
        assert scene.transform == file.transform == transform
        assert scene.crs == file.crs


def test_window_over_the_border_is_missing_and_filled(write_scene: WriteScene) -> None:
    samples = random_samples(2, 10, 12)
    with Scene.open(write_scene(samples), fill=(7.4, 300.0)) as scene:
        read, valid = scene.read(Window(-3, -2, 20, 15))
        nothing, none = scene.read(Window(100, 100, 4, 5))
    assert valid[2:12, 3:15].all()
    assert valid.sum() == 120
    np.testing.assert_array_equal(read[:, 2:12, 3:15], samples)
    assert (read[0][~valid] == 7).all()
    assert (read[1][~valid] == 255).all()  # as near as the stored type comes to 300
    assert not none.any()
    assert nothing.shape == (2, 5, 4)


def test_pixel_is_missing_when_every_band_is_nodata(write_scene: WriteScene) -> None:
    samples = random_samples(2, 8, 8)
    samples[:, 0, 0] = 0
    samples[0, 1, 1] = 0  # one band only: in uint8 this is a measured 0
    with Scene.open(write_scene(samples, nodata=0), fill=(9, 8)) as scene:
        read, valid = scene.read(Window(0, 0, 8, 8))
    assert scene.nodata == 0
    assert not valid[0, 0]
    assert valid.sum() == 63
    assert read[:, 0, 0].tolist() == [9, 8]
    assert read[0, 1, 1] == 0


def test_single_missing_samples_of_signed_types_are_filled(write_scene: WriteScene) -> None:
    samples = random_samples(2, 8, 8, "int16")
    samples[0, 1, 1] = -9999
    with Scene.open(write_scene(samples, nodata=-9999), fill=(5, 6)) as scene:
        read, valid = scene.read(Window(0, 0, 8, 8))
    assert valid.all()
    assert read[0, 1, 1] == 5


def test_nan_and_infinity_are_missing(write_scene: WriteScene) -> None:
    samples = random_samples(2, 8, 8, "float32")
    samples[:, 0, 0] = np.nan
    samples[0, 1, 1] = np.inf
    with Scene.open(write_scene(samples)) as scene:
        read, valid = scene.read(Window(0, 0, 8, 8))
    assert not valid[0, 0]
    assert valid.sum() == 63
    assert np.isfinite(read).all()
    assert read[0, 1, 1] == 0
    assert read[1, 1, 1] == samples[1, 1, 1]


def test_nodata_can_be_overridden(write_scene: WriteScene) -> None:
    samples = random_samples(1, 8, 8)
    samples[0, 2, 2] = 200
    path = write_scene(samples, nodata=0)
    with Scene.open(path, nodata=200) as scene:
        assert np.argwhere(~scene.read(Window(0, 0, 8, 8))[1]).tolist() == [[2, 2]]


def test_nodata_that_the_type_cannot_hold_is_none(write_scene: WriteScene) -> None:
    with Scene.open(write_scene(random_samples(1, 8, 8)), nodata=-9999) as scene:
        assert scene.nodata is None
        assert scene.read(Window(0, 0, 8, 8))[1].all()


def test_mask_band_says_what_is_missing(write_scene: WriteScene) -> None:
    path = write_scene(random_samples(3, 8, 8))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        mask = np.full((8, 8), 255, "uint8")
        mask[:, 5:] = 0
        file.write_mask(mask)
    with Scene.open(path) as scene:
        _, valid = scene.read(Window(0, 0, 8, 8))
    np.testing.assert_array_equal(valid, mask > 0)


def test_alpha_band_is_a_mask_and_no_band(write_scene: WriteScene) -> None:
    samples = random_samples(4, 8, 8)
    samples[3] = 255
    samples[3, :4] = 0
    path = write_scene(samples, photometric="rgb", alpha="yes")
    with Scene.open(path) as scene:
        assert scene.bands == (1, 2, 3)
        _, valid = scene.read(Window(0, 0, 8, 8))
    np.testing.assert_array_equal(valid, samples[3] > 0)
    with Scene.open(path, bands=(3, 1)) as scene:
        read, valid = scene.read(Window(0, 0, 8, 8))
    np.testing.assert_array_equal(read, samples[[2, 0]])
    np.testing.assert_array_equal(valid, samples[3] > 0)


def test_measured_band_tagged_alpha_stays_a_band(write_scene: WriteScene) -> None:
    samples = random_samples(4, 8, 8)
    path = write_scene(samples, photometric="rgb", alpha="yes")  # GDAL's default for 4 bytes
    with pytest.warns(RssegWarning, match="band 4 is tagged alpha"):
        scene = Scene.open(path)
    with scene:
        read, valid = scene.read(Window(0, 0, 8, 8))
    np.testing.assert_array_equal(read, samples)
    assert valid.all()


def test_cmyk_tagged_tiff_keeps_its_samples(write_scene: WriteScene) -> None:
    samples = random_samples(4, 20, 30)
    path = write_scene(samples, photometric="cmyk", alpha=None)
    with rasterio.open(path) as plain:
        assert not np.array_equal(plain.read(), samples)  # the trap: GDAL makes RGBA of it
    for raw in (False, True):
        with Scene.open(path, raw=raw) as scene:
            read, valid = scene.read(Window(0, 0, 30, 20))
            assert scene.count == 4
        np.testing.assert_array_equal(read, samples)
        assert valid.all()


def test_box_is_the_scene(write_scene: WriteScene) -> None:
    samples = random_samples(1, 20, 30)
    with Scene.open(write_scene(samples), box=(6, 5, 26, 19)) as scene:
        assert (scene.width, scene.height) == (20, 14)
        assert scene.transform == rasterio.Affine(10, 0, 500_060, 0, -10, 5_299_950)
        read, valid = scene.read(Window(-2, 0, 20, 14))
    np.testing.assert_array_equal(read[:, :, 2:], samples[:, 5:19, 6:24])
    assert not valid[:, :2].any()  # outside the box, though inside the file


def test_no_crs_warns_and_works(write_scene: WriteScene) -> None:
    path = write_scene(random_samples(1, 8, 8), crs=None, transform=None)
    with pytest.warns(RssegWarning, match="no coordinate reference system"):
        scene = Scene.open(path)
    with scene:
        assert scene.read(Window(0, 0, 8, 8))[1].all()
        assert scene.crs is None


@pytest.mark.parametrize("driver", ["COG", "JP2OpenJPEG"])
def test_other_formats_read_alike(write_scene: WriteScene, tmp_path: Path, driver: str) -> None:
    samples = random_samples(1, 90, 70)
    source, path = write_scene(samples), tmp_path / "copy"
    options = {"QUALITY": "100", "REVERSIBLE": "YES"} if driver != "COG" else {}
    rasterio.shutil.copy(source, path, driver=driver, **options)
    with Scene.open(path) as scene:
        read, _ = scene.read(Window(3, 4, 60, 80))
        assert scene.transform == NORTH_UP
    np.testing.assert_array_equal(read, samples[:, 4:84, 3:63])


def test_vsi_paths_open(write_scene: WriteScene, tmp_path: Path) -> None:
    samples = random_samples(1, 9, 9)
    with zipfile.ZipFile(tmp_path / "scene.zip", "w") as archive:
        archive.write(write_scene(samples), "a.tif")
    with Scene.open(f"/vsizip/{tmp_path}/scene.zip/a.tif") as scene:
        np.testing.assert_array_equal(scene.read(Window(0, 0, 9, 9))[0], samples)


def test_unreadable_files_say_why(tmp_path: Path, write_scene: WriteScene) -> None:
    (tmp_path / "empty.tif").touch()
    (tmp_path / "text.tif").write_text("no raster at all")
    cut = write_scene(np.random.default_rng(0).integers(0, 255, (1, 200, 200), "uint8"), "cut.tif")
    cut.write_bytes(cut.read_bytes()[:9000])
    for name, reason in {
        "empty.tif": "the file is empty",
        "text.tif": "cannot be read",
        "missing.tif": "no such file",
        ".": "this is a folder",
    }.items():
        with pytest.raises(UnreadableError, match=reason) as caught:
            Scene.open(tmp_path / name)
        assert caught.value.where == str(tmp_path / name)
        assert caught.value.fix
    with pytest.raises(UnreadableError, match="cannot be read"), Scene.open(cut) as scene:
        scene.read(Window(0, 0, 200, 200))


def test_bands_and_boxes_that_are_not_there(write_scene: WriteScene) -> None:
    path = write_scene(random_samples(2, 8, 8))
    with pytest.raises(RssegError, match="no band 3"):
        Scene.open(path, bands=(1, 3))
    with pytest.raises(RssegError, match="does not fit"):
        Scene.open(path, box=(0, 0, 9, 8))
    with pytest.raises(ValueError, match="1 fill values for 2 bands"):
        Scene.open(path, fill=(1,))


@pytest.mark.parametrize("nodata", [None, 0])
def test_shrunk_scene_covers_the_same_ground(write_scene: WriteScene, nodata: int | None) -> None:
    samples = random_samples(2, 60, 90).clip(1)
    samples[:, :30] = 0
    path = write_scene(samples, nodata=nodata)
    with Scene.open(path, box=(10, 0, 90, 60)) as scene:
        small = scene.downsampled(40)
        assert (small.width, small.height) == (40, 30)
        corners = [scene.transform @ (80, 60), small.transform @ (40, 30)]
        assert corners[0] == pytest.approx(corners[1])
        read, valid = small.read(Window(-1, 0, 41, 30))
        assert not valid[:, 0].any()
        assert valid[:, 1:].all(1).tolist() == [nodata is None] * 15 + [True] * 15
        # Nearest neighbour takes one of the four pixels.
        blocks = samples[:, :, 10:].reshape(2, 30, 2, 40, 2)
        assert (blocks == read[:, :, None, 1:, None]).any((2, 4)).all()
        assert scene.downsampled(500).transform == scene.transform

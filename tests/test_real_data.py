"""Real imagery and labels load through `Source`; skipped with a reason where they are absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from paths import SHARED
from scenes import write_raster
from shapely.geometry import box

from rsseg_cli.classes import IGNORE
from rsseg_cli.data.source import Source
from rsseg_cli.data.tiles.class_index import ClassIndex
from rsseg_cli.data.tiles.tile_stream import TileStream
from rsseg_cli.data.tiles.validation_tiles import CoveringTiles
from rsseg_cli.errors import RssegWarning
from rsseg_cli.raster.grid import Window

DATA = SHARED / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"real imagery is not at {DATA}")

RGB = (
    "bands: [{name: red, wavelength_nm: 660}, {name: green, wavelength_nm: 560}, "
    "{name: blue, wavelength_nm: 485}]"
)
BUILDING = """
classes:
- {id: 0, name: background, color: [90, 90, 90]}
- {id: 1, name: building, color: [220, 40, 40]}
"""
CLOUD = """name: cloud
bands:
- {name: blue, wavelength_nm: 485}
- {name: green, wavelength_nm: 560}
- {name: red, wavelength_nm: 660}
- {name: nir, wavelength_nm: 830}
- {name: swir16, wavelength_nm: 1610}
- {name: swir22, wavelength_nm: 2200}
dtype: float32
scale: 1.0
classes:
- {id: 0, name: shadow, color: [40, 40, 40]}
- {id: 1, name: water, color: [0, 80, 220]}
- {id: 2, name: snow, color: [240, 250, 255]}
- {id: 3, name: land, color: [60, 160, 60]}
- {id: 4, name: cloud, color: [200, 200, 200]}
splits:
  train: {box: [0, 0, 0.5, 1]}
  val: {box: [0.5, 0, 1, 1]}
"""
FOREST = f"""name: new_brunswick
{RGB}
field: Quatreclasses
background: background
ignore: [255]
classes:
- {{id: 0, name: background, color: [90, 90, 90]}}
- {{id: 1, name: forest, color: [0, 120, 0], value: '1'}}
- {{id: 2, name: water, color: [0, 0, 220], value: '2'}}
- {{id: 3, name: road, color: [120, 120, 120], value: '3'}}
- {{id: 4, name: building, color: [220, 0, 0], value: '4'}}
"""
SEASONS = """name: chiapas
bands:
- {name: blue, wavelength_nm: 485}
- {name: green, wavelength_nm: 560}
- {name: red, wavelength_nm: 660}
- {name: nir, wavelength_nm: 835}
- {name: swir1, wavelength_nm: 1650}
- {name: swir2, wavelength_nm: 2220}
- {name: temperature}
- {name: cloud mask}
scale: 1.0e-4
reader: {nodata: -9999}
labels: labels/training_data.shp
field: class
pattern: 'images/LE7\\d{6}(?P<domain>\\d{4})(?P<stem>\\w+)\\.gtif$'
domains:
  lush: {groups: {domain: '1999'}}
  dry: {groups: {domain: '2002'}}
classes:
- {id: 1, name: forest, color: [0, 100, 0]}
- {id: 2, name: water, color: [0, 0, 220]}
- {id: 3, name: herbaceous, color: [150, 220, 80]}
- {id: 4, name: barren, color: [180, 150, 100]}
- {id: 5, name: urban, color: [220, 0, 0]}
"""


def source(tmp_path: Path, folder: str, text: str, asked: str = "") -> Source:
    path = tmp_path / "set.yaml"
    path.write_text(text)
    return Source.locate(f"{path}{asked}", data_root=DATA / folder)


def whole(of: Source, number: int = 0) -> Any:
    pair = of.pairs()[number]
    reader = of.opener.labels(pair)
    assert reader is not None
    return reader.read(pair.info.window)


def counts(of: Source) -> dict[str, int]:
    found = np.bincount(whole(of).ravel(), minlength=256)
    return {one.name: int(found[index]) for index, one in enumerate(of.classes)}


def test_banepa_polygons_agree_with_its_masks(tmp_path: Path) -> None:
    of = source(tmp_path, "buildings/banepa", f"name: banepa\n{RGB}{BUILDING}")
    with rasterio.open(DATA / "buildings/banepa/masks/banepa_1.tif") as file:
        mask = file.read(1)
    drawn = whole(of)
    known = mask != IGNORE
    assert (drawn[known] == mask[known]).mean() > 0.99
    train, val = of.training_and_validation()
    share = sum(pair.area for pair in val) / drawn.size
    assert 0.15 < share < 0.3
    for one in train[0].windows:
        assert all(one.intersect(other) is None for other in val[0].windows)


@pytest.mark.parametrize("reader", ["", "reader: {nodata: none}\n"])
def test_boston_keeps_its_white_roofs(tmp_path: Path, reader: str) -> None:
    text = f"name: boston\n{RGB}{BUILDING}{reader}"
    of = source(tmp_path, "buildings/boston", text)
    with of.opener.scene(of.pairs()[0].image) as scene:
        samples, valid = scene.read(Window(0, 0, 1182, 901))
    assert scene.nodata == (None if reader else 255)
    assert samples.max() < 255  # a nodata value that does not occur: roofs lose nothing
    assert valid.all()
    assert counts(of)["building"] > 50_000


def test_atlanta_reads_its_fourth_band_when_told(tmp_path: Path) -> None:
    bands = RGB.replace("]", ", {name: nir, wavelength_nm: 830}]")
    of = source(tmp_path, "buildings/atlanta", f"name: atlanta\n{bands}{BUILDING}")
    assert of.pairs()[0].info.bands == 4
    assert 10_000 < counts(of)["building"] < 16_000
    assert len(of.bands().mean) == 4
    assert len(Source.locate(str(DATA / "buildings/atlanta")).spec.bands) == 3  # the 4th is opaque


def test_sacramento_labels_come_from_degrees(tmp_path: Path) -> None:
    bands = RGB.replace("]", ", {name: nir, wavelength_nm: 830}]")
    of = source(tmp_path, "buildings/sacramento", f"name: s\n{bands}{BUILDING}dtype: int16\n")
    frame = Source.locate(str(DATA / "buildings/sacramento"))
    np.testing.assert_array_equal(whole(of), whole(frame))
    info = of.pairs()[0].info
    table = geopandas.read_file(DATA / "buildings/sacramento/labels/sacramento.geojson")
    west, north = info.transform.c, info.transform.f
    east, south = info.transform @ (info.width, info.height)
    roofs = table.to_crs(info.crs).union_all().intersection(box(west, south, east, north))
    area = roofs.area / abs(info.transform.determinant)
    assert counts(of)["building"] == pytest.approx(area, rel=0.03)


def test_new_brunswick_classes_are_texts(tmp_path: Path) -> None:
    of = source(tmp_path, "landcover/new_brunswick", FOREST)
    found = counts(of)
    assert all(found[name] > 0 for name in ("forest", "water", "road", "building"))
    assert Source.locate(str(DATA / "landcover/new_brunswick")).spec.ignore == (255,)
    train, val = of.training_and_validation()
    index = ClassIndex.build([(of.opener, train)])
    assert (index.counts > 0).all()
    assert val


def test_cloud_halves(tmp_path: Path) -> None:
    of = source(tmp_path, "cloud/sentinel2", CLOUD)
    train, val = of.training_and_validation()
    assert train[0].regions == (Window(0, 0, 256, 512),)
    assert val[0].regions == (Window(256, 0, 256, 512),)
    found = counts(of)
    assert found == {"shadow": 28583, "water": 840, "snow": 0, "land": 183124, "cloud": 49597}
    bands = of.bands(train)
    with of.opener.scene(train[0].image) as scene:
        left = scene.read(Window(0, 0, 256, 512))[0].astype(np.float64)
    np.testing.assert_allclose(bands.mean, left.mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(bands.std, left.std((1, 2)), rtol=1e-6)
    stream = TileStream([(of.opener, train)], bands, tile=96, batch=4, seed=0)
    assert (stream[0].label != IGNORE).all()
    other = source(tmp_path, "cloud/landsat7", CLOUD, ":val")
    covered = sum(
        int((batch.label != IGNORE).sum())
        for batch in CoveringTiles([(other.opener, other.pairs())], bands, tile=100, batch=4)
    )
    assert covered == 512 * 256


def test_chiapas_two_dates_one_shapefile(tmp_path: Path) -> None:
    of = source(tmp_path, "seasons/chiapas", SEASONS)
    assert {pair.domain for pair in of.pairs()} == {"lush", "dry"}
    (lush,) = source(tmp_path, "seasons/chiapas", SEASONS, "::lush").pairs()
    with rasterio.open(DATA / "seasons/chiapas/labels/training_data.gtif") as file:
        ids = file.read(1)
    drawn = whole(of)
    known = (drawn != IGNORE) & (ids > 0)
    # Two polygons have an id and a name that disagree.
    assert known.sum() > 0.95 * (ids > 0).sum()
    assert (drawn[known] + 1 == ids[known]).mean() > 0.8
    train, val = of.training_and_validation()
    index = ClassIndex.build([(of.opener, train)])
    assert (index.counts > 0).all()
    bands = of.bands(train)
    assert all(mean > -1000 for mean in bands.mean)
    stream = TileStream([(of.opener, train)], bands, tile=64, batch=4, seed=0, index=index)
    for step in range(5):
        batch = stream[step]
        assert (batch.image > -9999).all()
        assert (batch.label != IGNORE).flatten(1).any(1).all()
    for pair, held in zip(train, val, strict=True):
        assert pair.info.transform == held.info.transform
        assert all(a.intersect(b) is None for a in pair.windows for b in held.windows)
    assert train[0].regions == train[1].regions
    assert lush.name in {pair.name for pair in of.pairs()}


def test_every_folder_is_discovered() -> None:
    folders = sorted(path.parent for path in DATA.glob("*/*/images"))
    assert len(folders) == 8
    for folder in folders:
        if folder.name == "chiapas":
            with pytest.warns(RssegWarning, match=r"training_data\.gtif is read as the label"):
                of = Source.locate(str(folder))
        else:
            of = Source.locate(str(folder))
        train, val = of.training_and_validation()
        assert train
        assert val


def test_raw_tiles_are_georeferenced_by_their_sidecars(tmp_path: Path) -> None:
    tile = sorted((DATA / "buildings/banepa/raw_tiles").glob("*.tif"))[0]
    labels = DATA / "buildings/banepa/raw_tiles/osm_features_ac7e343eb1faacd2.geojson"
    text = f"name: raw\nroot: .\nimages: '{tile.name}'\npattern: '(?P<stem>.+)'\n{RGB}{BUILDING}"
    of = source(tmp_path, "buildings/banepa/raw_tiles", f"{text}labels: {labels.name}\n")
    assert of.pairs()[0].info.crs.to_epsg() == 4326
    assert 0.05 < (whole(of) == 1).mean() < 0.9
    bare = write_raster(tmp_path / "bare.tif", np.ones((3, 8, 8), np.uint8))
    assert of.opener.info(bare).width == 8

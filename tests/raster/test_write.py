"""Maps are written whole or not at all, with the meaning of their numbers."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from paths import ENVIRONMENT
from rasterio.enums import ColorInterp
from scenes import NORTH_UP

from rsseg_cli.classes import Class
from rsseg_cli.errors import RssegError
from rsseg_cli.raster import sidecars
from rsseg_cli.raster.creation_options import CreationOptions
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.map_style import MapGrid, MapStyle
from rsseg_cli.raster.resume_state import ResumeState
from rsseg_cli.raster.write import MapWriter

CLASSES = (Class(0, "open water", (0, 0, 255)), Class(3, "wood & scrub <5 m", (10, 120, 30)))
GRID = MapGrid(600, 1100, rasterio.CRS.from_epsg(32633), NORTH_UP)
PARTS = [Window(0, 0, 512, 1024), Window(0, 1024, 512, 76), Window(512, 0, 88, 1100)]
STATE = ResumeState(tuple(PARTS))
STYLE = MapStyle(("class",), CLASSES, tags={"version": "1.2.3", "model": "runs/a"})


def numbers() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.choice(np.array([0, 3, 255], "uint8"), (1, 1100, 600))


def write(
    path: Path, style: MapStyle = STYLE, *, step: int = 200, **settings: object
) -> list[Path]:
    """Write `numbers` swath by swath in uneven steps."""
    data = numbers()
    with MapWriter(path, GRID, style, STATE, **settings) as writer:  # type: ignore[arg-type]
        for x, width in ((0, 512), (512, 88)):
            for y in range(0, 1100, step):
                rows = data[:, y : y + step, x : x + width]
                writer.write(x, y, np.ascontiguousarray(rows))
        writer.assemble()
        return writer.publish()


def names_gdal_reads(path: Path) -> list[str | None]:
    """Read category names through GDAL: rasterio has no call, a virtual copy lists them."""
    virtual = path.with_suffix(".check.vrt")
    rasterio.shutil.copy(path, virtual, driver="VRT")
    found = ET.parse(virtual).findall("VRTRasterBand/CategoryNames/Category")
    virtual.unlink()
    return [category.text for category in found]


@pytest.mark.parametrize("driver", ["COG", "GTiff"])
def test_map_holds_what_was_written(tmp_path: Path, driver: str) -> None:
    path = tmp_path / "map.tif"
    made = write(path, creation=CreationOptions(driver))
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(), numbers())
        assert file.nodata == 255
        assert (file.transform, file.crs) == (GRID.transform, GRID.crs)
        assert file.compression.name == "zstd"
        assert file.block_shapes == [(512, 512)]
    assert sorted(made) == sorted(tmp_path.iterdir())
    assert made[0] == path


def test_colours_names_and_tags_travel_with_the_map(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    write(path)
    with rasterio.open(path) as file:
        assert file.colormap(1)[3] == (10, 120, 30, 255)
        assert file.colorinterp == (ColorInterp.palette,)
        assert file.descriptions == ("class",)
        assert file.tags()["rsseg_model"] == "runs/a"
    assert names_gdal_reads(path) == ["open water", None, None, "wood & scrub <5 m"]
    # GDAL carries names and table on into copies: it has understood them.
    copied = tmp_path / "copy.tif"
    rasterio.shutil.copy(path, copied, driver="COG")
    assert names_gdal_reads(copied) == names_gdal_reads(path)
    table = ET.parse(f"{copied}.aux.xml").find(".//GDALRasterAttributeTable")
    assert table is not None
    assert table.get("tableType") == "thematic"
    rows = [[cell.text for cell in row.findall("F")] for row in table.findall("Row")]
    assert rows[1] == ["3", "wood & scrub <5 m", "10", "120", "30"]


def test_qgis_style_lists_the_classes(tmp_path: Path) -> None:
    write(tmp_path / "map.tif")
    root = ET.fromstring((tmp_path / "map.qml").read_text())
    renderer = root.find("pipe/rasterrenderer")
    assert renderer is not None
    assert renderer.get("type") == "paletted"
    entries = [
        (entry.get("value"), entry.get("label"), entry.get("color"))
        for entry in renderer.findall("colorPalette/paletteEntry")
    ]
    assert entries == [("0", "open water", "#0000ff"), ("3", "wood & scrub <5 m", "#0a781e")]


def test_stac_item_says_what_and_where(tmp_path: Path) -> None:
    write(tmp_path / "map.tif")
    item = json.loads((tmp_path / "map.json").read_text())
    assert item["type"] == "Feature"
    assert item["properties"]["proj:code"] == "EPSG:32633"
    assert item["properties"]["proj:shape"] == [1100, 600]
    assert item["properties"]["rsseg:model"] == "runs/a"
    asset = item["assets"]["map"]
    assert (tmp_path / asset["href"]).is_file()
    assert [one["value"] for one in asset["classification:classes"]] == [0, 3, 255]
    west, south, east, north = item["bbox"]
    bounds = rasterio.warp.transform_bounds(GRID.crs, "EPSG:4326", 5e5, 5.289e6, 5.06e5, 5.3e6)
    np.testing.assert_allclose((west, south, east, north), bounds, atol=1e-3)


def test_map_without_place_has_no_geometry() -> None:
    grid = MapGrid(2, 3, None, rasterio.Affine.identity())
    item = sidecars.stac_item("map.tif", grid, STYLE)
    assert item["geometry"] is None
    assert "bbox" not in item


def test_stac_datetime_is_that_of_the_scene() -> None:
    unknown = sidecars.stac_item("map.tif", GRID, STYLE)["properties"]
    assert unknown["datetime"] is None
    assert unknown["start_datetime"] < unknown["end_datetime"] == unknown["created"]
    dated = replace(GRID, acquired=datetime(2019, 7, 3, 10, 30, tzinfo=UTC))
    known = sidecars.stac_item("map.tif", dated, STYLE)["properties"]
    assert known["datetime"] == "2019-07-03T10:30:00Z"
    assert "start_datetime" not in known


def test_map_of_quantities_has_scale_and_no_palette(tmp_path: Path) -> None:
    made = write(tmp_path / "sure.tif", MapStyle(("confidence",), scale=1 / 254))
    with rasterio.open(made[0]) as file:
        assert file.scales == (1 / 254,)
        assert file.colorinterp == (ColorInterp.gray,)
    assert made == [tmp_path / "sure.tif"]


def test_sidecar_keeps_what_gdal_put_there() -> None:
    before = "<PAMDataset><SRS>X</SRS><PAMRasterBand band='1'><Old/></PAMRasterBand></PAMDataset>"
    root = ET.fromstring(sidecars.pam_sidecar(CLASSES, before))
    assert root.find("SRS") is not None
    assert root.find("PAMRasterBand/Old") is not None
    assert len(root.findall("PAMRasterBand")) == 1
    again = sidecars.pam_sidecar(CLASSES, sidecars.pam_sidecar(CLASSES))
    assert again == sidecars.pam_sidecar(CLASSES)


def test_nothing_is_there_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    with MapWriter(path, GRID, STYLE, STATE) as writer:
        writer.write(0, 0, numbers()[:, :1030, :512])
        assert not path.exists()
        assert writer.finished == {0}
        with pytest.raises(ValueError, match=r"2 parts of .* are not written"):
            writer.assemble()
    assert not list(tmp_path.iterdir())


def test_output_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RssegError, match="is a folder"):
        MapWriter(tmp_path, GRID, STYLE, STATE)


FULL_DISK = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from paths import ENVIRONMENT
import numpy as np
from test_write import GRID, STYLE, STATE
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.write import MapWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # writes beyond fail, as if full
try:
    with MapWriter(Path(sys.argv[1]) / "map.tif", GRID, STYLE, STATE) as writer:
        rng = np.random.default_rng(0)
        writer.write(0, 0, rng.integers(0, 200, (1, 1100, 512), "uint8"))
        writer.write(512, 0, rng.integers(0, 200, (1, 1100, 88), "uint8"))
        writer.assemble()
except RssegError as error:
    print(error)
"""


def test_write_that_fails_late_is_noticed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(Path(__file__).parent)],
        env=ENVIRONMENT,
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "error: the map cannot be written" in done.stdout
    assert not list(tmp_path.iterdir())

"""Pairs of a source to learn from and a target on other ground, as dataset files of rsseg.

A pair is two texts as `--src` and `evaluate --on` take them. The YAML files are written into a work
folder and point to the imagery with `root`. Centres of Sentinel-2's and Landsat-7's bands are the
sensors' own; those of 8-bit photographs are nominal.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import rasterio
from rasterio.enums import Resampling
from rasterio.warp import transform

from rsseg_cli.demo.sample import write_sample

WHITE = 0.3
"""Reflectance that 255 of an 8-bit photograph stands for. Such images are stretched so that bright
ground is nearly white; with 0.3 the means of the three cities come to 0.06 to 0.13, where the
published statistics of Galileo's visible bands have 0.13 +- 0.1."""
GSD_M = 1.0
"""Size of a pixel on the ground to which all cities are brought."""

Bands = dict[str, float]
SENTINEL2: Bands = {
    "blue": 490, "green": 560, "red": 665, "nir": 842, "swir16": 1610, "swir22": 2190,
}  # fmt: skip
LANDSAT7: Bands = {
    "blue": 485, "green": 560, "red": 660, "nir": 835, "swir16": 1650, "swir22": 2220,
}  # fmt: skip
RGB: Bands = {"red": 650, "green": 560, "blue": 480}

CLOUD = """classes:
- {id: 0, name: shadow, color: [40, 40, 60]}
- {id: 1, name: water, color: [40, 110, 190]}
- {id: 2, name: snow, color: [150, 230, 240]}
- {id: 3, name: land, color: [120, 170, 80]}
- {id: 4, name: cloud, color: [245, 245, 245]}
"""
HALVES = {"left": [0, 0, 256, 512], "right": [256, 0, 512, 512]}
"""Columns and rows of the halves of a scene with clouds."""
MASK = 8
"""Band of the seasons' images that marks clouds and shadows."""
SEASONS = r"""images: images/*.gtif
pattern: images/(?P<stem>.+)\.gtif$
labels: labels/{stem}.tif
reader: {nodata: -9999}
ignore: [0]
classes:
- {id: 1, name: forest, color: [30, 110, 50]}
- {id: 2, name: water, color: [40, 110, 190]}
- {id: 3, name: herbaceous, color: [170, 210, 90]}
- {id: 4, name: barren, color: [200, 170, 120]}
- {id: 5, name: urban, color: [200, 60, 60]}
splits:
  lush: {glob: images/*1999*, box: [0, 0, 1, 0.2]}
  dry: {glob: images/*2002*, box: [0, 0.2, 1, 1]}
"""
OBJECT = """classes:
- {id: 0, name: clear, color: [120, 170, 80]}
- {id: 1, name: cloud, color: [245, 245, 245]}
remap: {0: 0, 1: 0, 2: 0, 3: 0, 4: 1}
"""
BUILDING = """background: background
reader: {nodata: none}
classes:
- {id: 0, name: background, color: [200, 200, 190]}
- {id: 1, name: building, color: [200, 60, 60]}
splits:
  north: {box: [0, 0, 1, 0.7]}
  south: {box: [0, 0.7, 1, 1]}
"""


@dataclass(frozen=True)
class Pair:
    """Source and target of a run.

    Attributes:
        source: Value of `--src`.
        target: Value of `evaluate --on`.
        tile: Side of a training tile in pixels: about as many tokens in every pair.
    """

    source: str
    target: str
    tile: int = 32

    def fingerprint(self) -> str:
        """Return the digest of the dataset files, which changes with the pair."""
        total = hashlib.sha256()
        for text in (self.source, self.target):
            path = Path(text.partition(":")[0])
            file = path / "dataset.yaml" if path.is_dir() else path
            said = [line for line in file.read_text().splitlines() if not line.startswith("root:")]
            total.update("\n".join([*said, text.partition(":")[2]]).encode())
        return total.hexdigest()[:16]


Maker = Callable[[Path, Path], Pair]


def make(name: str, *, data: Path, work: Path) -> Pair:
    """Write the dataset files of a pair, and what else it needs.

    Args:
        name: One of `PAIRS`.
        data: Folder with the shared imagery.
        work: Folder to write into; what is there already is used again.
    """
    work.mkdir(parents=True, exist_ok=True)
    return PAIRS[name](data.resolve(), work.resolve())


def _write(
    work: Path,
    name: str,
    root: Path,
    bands: Bands,
    rest: str,
    *,
    scale: float,
    gsd_m: float,
    numbered: bool = False,
) -> str:
    """Write a dataset file and return its path.

    Args:
        work: Folder to write into.
        name: Name of the dataset and of the file.
        root: Folder of its imagery.
        bands: Names and centres in nm.
        rest: Further keys: classes and splits.
        scale: Reflectance per stored unit.
        gsd_m: Size of a pixel on the ground.
        numbered: Say that these are the file's first bands, and that it has others.
    """
    lines = [f"name: {name}", f"root: {root}", f"scale: {scale!r}", f"gsd_m: {gsd_m}", "bands:"]
    for number, (band, centre) in enumerate(bands.items(), start=1):
        place = f", band: {number}" if numbered else ""
        lines.append(f"- {{name: {band}, wavelength_nm: {centre}{place}}}")
    path = work / f"{name}.yaml"
    path.write_text("\n".join(lines) + "\n" + rest, encoding="utf-8")
    return str(path)


def _sensor(name: str, half: str, data: Path, work: Path, *, classes: str = CLOUD) -> str:
    """Describe the scene of a sensor, or half of it: then nothing outside is read or mapped."""
    bands, gsd_m = {"sentinel2": (SENTINEL2, 10.0), "landsat7": (LANDSAT7, 30.0)}[name]
    box = f"reader: {{box: {HALVES[half]}}}\n" if half else ""
    parts = [name, half, "object" if classes == OBJECT else ""]
    called = "_".join(part for part in parts if part)
    root = data / "cloud" / name
    return _write(work, called, root, bands, classes + box, scale=1.0, gsd_m=gsd_m)


def _clouds(source: str, target: str, data: Path, work: Path, *, classes: str = CLOUD) -> Pair:
    """Learn on all of a sensor's scene; half of the other's is enough for a test, and quicker."""
    return Pair(
        _sensor(source, "", data, work, classes=classes),
        _sensor(target, "left", data, work, classes=classes),
    )


def _halves(name: str, data: Path, work: Path) -> Pair:
    return Pair(_sensor(name, "left", data, work), _sensor(name, "right", data, work))


def _seasons(data: Path, work: Path) -> Pair:
    """Learn in one year and test in another, on other ground: both dates have the same labels.

    There are few, and the cut is where both parts have all five classes, if only 11 pixels of
    built-up ground and 6 of water to be tested. Labels under clouds and their shadows say nothing
    of the image and are left out.
    """
    folder, given = work / "chiapas", data / "seasons" / "chiapas"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for image in (given / "images").glob("*.gtif"):
        shutil.copy(image, folder / "images" / image.name)
        label = folder / "labels" / f"{image.stem}.tif"
        without_clouds(image, given / "labels" / "training_data.gtif", label)
    keys = {"scale": 1.0e-4, "gsd_m": 30.0}
    dataset = _write(work, "chiapas", folder, LANDSAT7, SEASONS, **keys, numbered=True)
    return Pair(f"{dataset}:lush", f"{dataset}:dry")


def without_clouds(image: Path, label: Path, target: Path) -> None:
    """Copy a label with 0 wherever the mask of an image is not 0, which means clear."""
    with rasterio.open(image) as file:
        clear = file.read(MASK) == 0
    with rasterio.open(label) as file:
        profile, ids = file.profile | {"driver": "GTiff"}, file.read(1)
    with rasterio.open(target, "w", **profile) as written:
        written.write(ids * clear, 1)


def _cities(target: str, data: Path, work: Path) -> Pair:
    return Pair(_city("banepa", data, work), _city(target, data, work), tile=64)


def _parts_of_a_city(data: Path, work: Path) -> Pair:
    dataset = _city("banepa", data, work)
    return Pair(f"{dataset}:north", f"{dataset}:south", tile=64)


def _city(name: str, data: Path, work: Path) -> str:
    """Resample the photograph of a city to the common pixel size, in a folder with its labels."""
    folder = work / name
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for image in (data / "buildings" / name / "images").glob("*.tif"):
        resampled = folder / "images" / image.name
        if not resampled.exists():
            resample(image, resampled, bands=len(RGB))
    for label in (data / "buildings" / name / "labels").iterdir():
        shutil.copy(label, folder / "labels" / label.name)
    return _write(work, name, folder, RGB, BUILDING, scale=WHITE / 255, gsd_m=GSD_M)


def resample(image: Path, target: Path, *, bands: int) -> None:
    """Average the first bands of an image into pixels of about `GSD_M`, on the same ground.

    Metres of the web's Mercator projection shrink with the cosine of the latitude.
    """
    with rasterio.open(image) as file:
        middle = [[(low + high) / 2] for low, high in _edges(file.bounds)]
        _, (latitude,) = transform(file.crs, "EPSG:4326", *middle)
        shrinks = file.crs.to_epsg() == 3857
        true = math.cos(math.radians(latitude)) if shrinks else 1.0
        width = round(file.width * file.res[0] * true / GSD_M)
        height = round(file.height * file.res[1] * true / GSD_M)
        samples = file.read(
            list(range(1, bands + 1)),
            out_shape=(bands, height, width),
            resampling=Resampling.average,
        )
        scaled = file.transform @ rasterio.Affine.scale(file.width / width, file.height / height)
        profile = {
            "driver": "GTiff", "width": width, "height": height, "count": bands,
            "dtype": samples.dtype, "crs": file.crs, "transform": scaled, "compress": "deflate",
        }  # fmt: skip
    unfinished = target.with_suffix(".part")
    with rasterio.open(unfinished, "w", **profile) as written:
        written.write(samples)
    unfinished.replace(target)


def _edges(bounds: rasterio.coords.BoundingBox) -> tuple[tuple[float, float], tuple[float, float]]:
    return (bounds.left, bounds.right), (bounds.bottom, bounds.top)


def _sample(data: Path, work: Path) -> Pair:
    folder = work / "sample"
    north, south = folder / "north", folder / "south"
    if not (south / "dataset.yaml").exists():
        write_sample(folder, side=192)
    return Pair(str(north), str(south))


PAIRS: dict[str, Maker] = {
    "cloud_s2_to_l7": partial(_clouds, "sentinel2", "landsat7"),
    "cloud_l7_to_s2": partial(_clouds, "landsat7", "sentinel2"),
    "cloud_s2_halves": partial(_halves, "sentinel2"),
    "cloud_l7_halves": partial(_halves, "landsat7"),
    "cloud_object_s2_to_l7": partial(_clouds, "sentinel2", "landsat7", classes=OBJECT),
    "cloud_object_l7_to_s2": partial(_clouds, "landsat7", "sentinel2", classes=OBJECT),
    "chiapas_1999_to_2002": _seasons,
    "banepa_north_to_south": _parts_of_a_city,
    "banepa_to_boston": partial(_cities, "boston"),
    "banepa_to_atlanta": partial(_cities, "atlanta"),
    "sample_north_to_south": _sample,
}

"""Synthetic land-cover sample: two regions that differ in season, haze and texture.

The spectra of the classes overlap on purpose: a pixel of a lush field looks like forest, one of a
dry field like a roof. The classes differ in texture, so that a model needs spatial context.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.features import shapes
from shapely.geometry import shape

from rsseg_cli.classes import Class

Plane = NDArray[np.float64]

CLASSES = [
    Class(1, "water", (38, 110, 190)),
    Class(2, "forest", (30, 110, 50)),
    Class(3, "cropland", (225, 190, 90)),
    Class(4, "built-up", (200, 60, 60)),
]
BANDS = {"blue": 490.0, "green": 560.0, "red": 665.0, "nir": 842.0}
NODATA = 0
GSD_M = 10.0
WATER = np.array([0.060, 0.050, 0.030, 0.015])
FOREST = np.array([0.030, 0.055, 0.035, 0.300])
LUSH = np.array([0.035, 0.065, 0.040, 0.330])
DRY = np.array([0.100, 0.140, 0.180, 0.260])
ROOF = np.array([0.150, 0.170, 0.200, 0.270])
STREET = np.array([0.080, 0.090, 0.100, 0.130])


@dataclass(frozen=True)
class Region:
    """Appearance of a region."""

    name: str
    lush: float
    """Mean fraction of lush vegetation on a field, 0..1: the season."""
    haze: float
    """Reflectance of the air in blue; lower in longer wavelengths."""
    dim: float
    """Transmittance of the air: factor on surface reflectance."""
    grain: float
    """Strength of forest texture."""
    block: int
    """Size of buildings in pixels."""
    origin: tuple[float, float]
    """Easting and northing of the upper left corner in EPSG:32633."""


REGIONS = (
    Region("north", 0.65, 0.00, 1.00, 0.30, 4, (500_000.0, 5_400_000.0)),
    Region("south", 0.40, 0.05, 0.85, 0.22, 5, (650_000.0, 5_200_000.0)),
)


def write_sample(folder: Path, *, seed: int = 42, side: int = 384, scenes: int = 3) -> list[Path]:
    """Write the sample; the same seed writes the same files.

    Each region has `images/` (4 bands, uint16 reflectance x 10000, a corner without data),
    `labels/` (of the first scene as polygons in a GeoPackage, of the others as rasters) and a
    `dataset.yaml`.

    Args:
        folder: Parent of the regions' folders.
        seed: Seed of all random numbers.
        side: Height of a scene in pixels; scenes are slightly wider.
        scenes: Number of scenes per region.

    Returns:
        The folder of each region.
    """
    folders = []
    for number, region in enumerate(REGIONS):
        root = folder / region.name
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / "labels").mkdir(exist_ok=True)
        for index in range(scenes):
            rng = np.random.default_rng([seed, number, index])
            _write_scene(root, region, index, (side, side + 37), rng)
        (root / "dataset.yaml").write_text(_dataset_yaml(region), encoding="utf-8")
        folders.append(root)
    return folders


def _write_scene(
    root: Path, region: Region, index: int, size: tuple[int, int], rng: np.random.Generator
) -> None:
    labels, parcels = _land_cover(size, rng)
    image = _image(labels, parcels, region, rng)
    height, width = size
    gap = np.add.outer(np.arange(height), np.arange(width)) < height // 4
    image[:, gap] = NODATA
    east, north = region.origin
    profile = {
        "driver": "GTiff", "height": height, "width": width, "crs": "EPSG:32633",
        "transform": rasterio.Affine(
            GSD_M, 0.0, east + index * width * GSD_M, 0.0, -GSD_M, north
        ),
        "tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate",
    }  # fmt: skip
    stem = f"{region.name}_{index + 1}"
    with rasterio.open(
        root / "images" / f"{stem}.tif", "w", count=4, dtype="uint16", nodata=NODATA, **profile
    ) as file:
        file.write(image)
        file.descriptions = tuple(BANDS)
    labels = np.where(gap, NODATA, labels).astype(np.uint8)
    if index == 0:
        _write_polygons(root / "labels" / f"{stem}.gpkg", labels, profile["transform"])
        return
    with rasterio.open(
        root / "labels" / f"{stem}.tif", "w", count=1, dtype="uint8", nodata=NODATA, **profile
    ) as file:
        file.write(labels, 1)


def _write_polygons(path: Path, labels: NDArray[np.uint8], transform: rasterio.Affine) -> None:
    names = {cls.id: cls.name for cls in CLASSES}
    polygons = list(shapes(labels, mask=labels != NODATA, transform=transform))
    geopandas.GeoDataFrame(
        {"cover": [names[int(value)] for _, value in polygons]},
        geometry=[shape(polygon) for polygon, _ in polygons],
        crs="EPSG:32633",
    ).to_file(path, driver="GPKG", layer="cover")


def _land_cover(size: tuple[int, int], rng: np.random.Generator) -> tuple[NDArray[np.uint8], Plane]:
    """Generate class ids (h, w), and the random number 0..1 of the field of each pixel (h, w)."""
    parcels = _parcels(size, rng)
    labels = np.full(size, 3, np.uint8)
    wood, town, height = (_noise(size, scale, rng) for scale in (16, 24, 32))
    labels[wood > np.quantile(wood, 0.68)] = 2
    labels[town > np.quantile(town, 0.80)] = 4
    labels[height < np.quantile(height, 0.16)] = 1
    return labels, parcels


def _parcels(size: tuple[int, int], rng: np.random.Generator) -> Plane:
    """Generate a tilted grid of fields of random widths, with one number 0..1 per field."""
    rows, columns = np.indices(size).astype(float)
    angle = rng.uniform(-0.5, 0.5)
    along = rows * np.cos(angle) + columns * np.sin(angle) + 1000
    across = columns * np.cos(angle) - rows * np.sin(angle) + 1000
    strips = np.searchsorted(np.cumsum(rng.integers(18, 48, 200)), along)
    fields = np.searchsorted(np.cumsum(rng.integers(18, 60, 200)), across)
    values: Plane = rng.random((201, 201))[strips, fields]
    return values


def _image(
    labels: NDArray[np.uint8], parcels: Plane, region: Region, rng: np.random.Generator
) -> NDArray[np.uint16]:
    """Render the spectra and textures of the classes, then the atmosphere: (4, h, w)."""
    size = labels.shape
    lush = np.clip(parcels * 1.6 - 0.8 + region.lush, 0, 1)[..., None]
    crop = lush * LUSH + (1 - lush) * DRY
    crop = crop * (1 + 0.03 * _noise(size, 2, rng))[..., None]
    crowns = 1 + region.grain * _noise(size, 0.8, rng)
    forest = FOREST * np.clip(crowns, 0.3, 2.0)[..., None]
    roofs = _blocks(size, region.block, rng)[..., None]
    green = (_noise(size, 1.5, rng) > 1.1)[..., None]
    town = np.where(green, LUSH, roofs * ROOF + (1 - roofs) * STREET)
    water = WATER * (1 + 0.04 * _noise(size, 3, rng))[..., None]
    surface = np.select(
        [(labels == k)[..., None] for k in (1, 2, 3, 4)], [water, forest, crop, town]
    )
    air = region.haze * np.array([1.0, 0.75, 0.55, 0.25])
    cloudiness = (1 + 0.3 * _noise(size, 40, rng))[..., None]
    sensor = surface * region.dim + air * cloudiness + rng.normal(0, 0.004, (*size, 4))
    return np.clip(sensor * 10_000, 1, 10_000).astype(np.uint16).transpose(2, 0, 1)


def _blocks(size: tuple[int, int], side: int, rng: np.random.Generator) -> Plane:
    """Generate square roofs of random brightness between streets: (h, w), streets are 0."""
    coarse = rng.choice([0.0, 0.6, 0.9, 1.2], (size[0] // side + 1, size[1] // side + 1))
    blocks: Plane = coarse.repeat(side, 0).repeat(side, 1)[: size[0], : size[1]]
    rows, columns = np.indices(size)
    return np.where((rows % side == 0) | (columns % side == 0), 0.0, blocks)


def _noise(size: tuple[int, int], scale: float, rng: np.random.Generator) -> Plane:
    """Generate Gaussian noise of mean 0 and variance 1, smooth over `scale` pixels."""
    spectrum = np.fft.rfft2(rng.standard_normal(size))
    rows, columns = np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None]
    smooth = np.fft.irfft2(
        spectrum * np.exp(-2 * (np.pi * scale) ** 2 * (rows**2 + columns**2)), size
    )
    scaled: Plane = (smooth - smooth.mean()) / smooth.std()
    return scaled


def _dataset_yaml(region: Region) -> str:
    lines = [
        f"name: {region.name}",
        f"title: Generated land cover, region {region.name}",
        f"gsd_m: {GSD_M}",
        "scale: 1.0e-4",
        "field: cover",
        f"ignore: [{NODATA}]",
        "bands:",
        *(f"- {{name: {name}, wavelength_nm: {centre}}}" for name, centre in BANDS.items()),
        "classes:",
        *(f"- {{id: {c.id}, name: {c.name}, color: {list(c.color)}}}" for c in CLASSES),
    ]
    return "\n".join(lines) + "\n"

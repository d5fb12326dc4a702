"""Infers a spec from the images and labels of a folder without `dataset.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rsseg_cli.data.infer.infer_classes import find_classes
from rsseg_cli.data.infer.infer_layout import find_layout
from rsseg_cli.data.spec.dataset_spec import BandSpec, DatasetSpec, Reader
from rsseg_cli.number_format import counted
from rsseg_cli.raster.pixel_size import pixel_size_m
from rsseg_cli.raster.scene import Scene

LIGHT_NM = {
    "coastal": 443.0, "blue": 485.0, "green": 560.0, "yellow": 605.0, "red": 660.0,
    "rededge": 705.0, "nir": 830.0, "swir16": 1610.0, "swir22": 2200.0, "swir1": 1610.0,
    "swir2": 2200.0,
}  # fmt: skip
"""Centres that are assumed for bands known by name only."""

COMMON = {3: ("red", "green", "blue"), 4: ("red", "green", "blue", "nir")}
"""Order that is assumed where files do not name their bands."""


def infer_spec(root: Path) -> tuple[DatasetSpec, str]:
    """Infer the spec of a folder from its images and labels.

    Returns:
        The spec, and a remark about what was found and what was assumed.

    Raises:
        RssegError: There is no known layout, or several; a file is unreadable; or the classes of
            the labels are ambiguous.
    """
    layout = find_layout(root)
    images, labels = layout.images, layout.labels
    found = find_classes(labels)
    with Scene.open(images[0], warn=False) as scene:
        bands, assumed = name_bands(scene)
        dtype, gsd_m = scene.dtype, ground_size_m(scene)
    nodata, mixed = _common_nodata(images)
    spec = DatasetSpec(
        name=root.resolve().name,
        title=root.resolve().name,
        bands=bands,
        dtype=dtype,
        gsd_m=gsd_m,
        images=(layout.glob,),
        pattern=layout.pattern,
        labels=(layout.template,),
        reader=Reader(nodata=nodata) if mixed else Reader(),
        classes=found.classes,
        ignore=found.ignore,
        encoding=found.encoding,
        field=found.field,
        background=found.background,
    )
    remark = [
        f"Found by looking at {counted(len(images), 'image')} and "
        f"{counted(len(labels), 'label')}: correct it freely.",
        *layout.remarks,
        *(["Bands are not named in the files; this order is assumed."] if assumed else []),
        *(["Only some images are tagged with that nodata value."] if mixed else []),
        *found.remarks,
    ]
    return spec, "\n".join(remark)


def name_bands(scene: Scene) -> tuple[tuple[BandSpec, ...], bool]:
    """Return the bands of a scene, named by its descriptions, else by their number.

    Returns:
        The bands, and whether their order is only assumed.
    """
    descriptions = [(text or "").strip().lower() for text in scene.descriptions]
    if all(descriptions) and len(set(descriptions)) == len(descriptions):
        return tuple(_band(text) for text in descriptions), False
    common = COMMON.get(scene.count) if scene.bands == tuple(range(1, scene.count + 1)) else None
    names = common or [f"band {number}" for number in scene.bands]
    return tuple(_band(name) for name in names), True


def _band(name: str) -> BandSpec:
    key = name.replace(" ", "").replace("_", "").replace("-", "")
    return BandSpec(name=name, wavelength_nm=LIGHT_NM.get(key))


def ground_size_m(scene: Scene) -> float | None:
    """Return the size of a pixel in metres, rounded for a spec; None where it is unknown."""
    size = pixel_size_m(scene.crs, scene.transform)
    return None if size is None else round(size, 4)


def _common_nodata(images: Sequence[Path]) -> tuple[float | None, bool]:
    """Find the nodata value of signed or float images where only some are tagged with it."""
    tags: set[float | None] = set()
    for path in images[:200]:
        with Scene.open(path, warn=False) as scene:
            tags.add(scene.nodata if scene.dtype[0] in "if" else None)
    values = [tag for tag in tags if tag is not None]
    mixed = len(values) == 1 and None in tags
    return (values[0] if mixed else None), mixed

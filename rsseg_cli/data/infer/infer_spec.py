"""Inference of a spec from the images and labels of a folder without `dataset.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rsseg_cli.data.infer.infer_classes import find_classes
from rsseg_cli.data.infer.infer_layout import find_layout
from rsseg_cli.data.spec.dataset_spec import BandSpec, DatasetSpec, Reader
from rsseg_cli.number_format import counted
from rsseg_cli.raster.pixel_size import pixel_size_m
from rsseg_cli.raster.scene import Scene

WAVELENGTHS_NM = {
    "coastal": 443.0, "blue": 485.0, "green": 560.0, "yellow": 605.0, "red": 660.0,
    "rededge": 705.0, "nir": 830.0, "swir16": 1610.0, "swir22": 2200.0, "swir1": 1610.0,
    "swir2": 2200.0,
}  # fmt: skip
"""Centre wavelengths that are assumed for bands by name."""

DEFAULT_ORDER = {3: ["red", "green", "blue"], 4: ["red", "green", "blue", "nir"]}
"""Bands that are assumed if files do not name them, by their number."""


def infer_spec(root: Path) -> tuple[DatasetSpec, str]:
    """Infer the spec of a folder from its images and labels.

    Returns:
        The spec, and a remark that lists the assumptions.

    Raises:
        RssegError: There is no known layout, or several; a file is unreadable; or the classes of
            the labels are ambiguous.
    """
    layout = find_layout(root)
    images, labels = layout.images, layout.labels
    inferred = find_classes(labels)
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
        classes=inferred.classes,
        ignore=inferred.ignore,
        encoding=inferred.encoding,
        field=inferred.field,
        background=inferred.background,
    )
    remark = [
        f"Inferred from {counted(len(images), 'image')} and {counted(len(labels), 'label')}: "
        "correct it freely.",
        *layout.remarks,
        *(["Bands are not named in the files; this order is assumed."] if assumed else []),
        *(["Only some images are tagged with that nodata value."] if mixed else []),
        *inferred.remarks,
    ]
    return spec, "\n".join(remark)


def name_bands(scene: Scene) -> tuple[tuple[BandSpec, ...], bool]:
    """Return the bands of a scene, and whether their names are assumed.

    Names are the band descriptions of the file, else the usual order (see `DEFAULT_ORDER`), else
    numbers.
    """
    descriptions = [(text or "").strip().lower() for text in scene.descriptions]
    if all(descriptions) and len(set(descriptions)) == len(descriptions):
        return tuple(_band(text) for text in descriptions), False
    names = [f"band {number}" for number in scene.bands]
    if scene.bands == tuple(range(1, scene.count + 1)):
        names = DEFAULT_ORDER.get(scene.count, names)
    return tuple(_band(name) for name in names), True


def _band(name: str) -> BandSpec:
    key = name.replace(" ", "").replace("_", "").replace("-", "")
    return BandSpec(name=name, wavelength_nm=WAVELENGTHS_NM.get(key))


def ground_size_m(scene: Scene) -> float | None:
    """Return the pixel size in metres, rounded to 4 digits; None if it is unknown."""
    size = pixel_size_m(scene)
    return None if size is None else round(size, 4)


def _common_nodata(images: Sequence[Path]) -> tuple[float | None, bool]:
    """Find the nodata value of signed or float images if only some of them are tagged with it."""
    tags: set[float | None] = set()
    for path in images[:200]:
        with Scene.open(path, warn=False) as scene:
            tags.add(scene.nodata if scene.dtype[0] in "if" else None)
    values = [tag for tag in tags if tag is not None]
    mixed = len(values) == 1 and None in tags
    return (values[0] if mixed else None), mixed

"""Output specification and per-scene result of a prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rsseg_cli.choices import Confidence
from rsseg_cli.classes import Class
from rsseg_cli.predict import map_layers
from rsseg_cli.predict.timing import Wait
from rsseg_cli.raster.blend import Product
from rsseg_cli.raster.class_names import classes_tag
from rsseg_cli.raster.map_style import MapStyle

SCALE = 1 / map_layers.STEPS
"""Scale factor of probability maps: probability = stored value * scale."""


@dataclass(frozen=True)
class Polygons:
    """Settings of the polygons of a class map; see `raster.polygonize`.

    Attributes:
        path: The GeoPackage.
        sieve: Patches of fewer pixels are merged into a neighbour.
        simplify: Tolerance in units of the map's CRS.
    """

    path: Path
    sieve: int = 0
    simplify: float = 0.0


@dataclass(frozen=True)
class MapLayer:
    """One map of a scene.

    Attributes:
        style: Names of its bands, classes, scale factor and tags.
        product: Computes its rows from class probabilities.
        published: False for a map that only serves to draw the polygons.
    """

    kind: Literal["map", "probabilities", "soft", "confidence"]
    path: Path
    style: MapStyle
    product: Product
    published: bool = True


@dataclass(frozen=True)
class Outputs:
    """Maps to write for a scene, in one pass.

    Attributes:
        map: Path of the class map.
        classes: Classes of the model's K channels, in order.
        reject: Pixels whose highest probability is below this become nodata.
        probabilities: Path of the map with one band per class, in steps of 1/254.
        soft: Path of the map with the probability of the second of two classes, likewise.
        confidence: Path of the map with the model's confidence, likewise.
        measure: Measure of the confidence.
        driver: `COG` or `GTiff`.
        options: Creation options of the driver.
        overwrite: Replace existing files.
        resume: Continue an unfinished map with the same dependencies.
        dependencies: Name and value of all that changes the maps. Unless None, the finished parts
            of a failed run are kept for `resume`.
        tags: Provenance, written into the maps.
    """

    map: Path
    classes: Sequence[Class]
    reject: float | None = None
    probabilities: Path | None = None
    soft: Path | None = None
    confidence: Path | None = None
    measure: Confidence = "max"
    polygons: Polygons | None = None
    driver: str = "COG"
    options: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False
    resume: bool = False
    dependencies: Mapping[str, str] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def bands(self) -> int:
        """Number of bands of all maps together."""
        probabilities = len(self.classes) if self.probabilities else 0
        return 1 + probabilities + bool(self.soft) + bool(self.confidence or self.polygons)

    def published(self) -> list[Path]:
        """List the paths of the maps that are published, the class map last."""
        return [layer.path for layer in self.layers() if layer.published]

    def layers(self) -> Iterator[MapLayer]:
        """Yield the maps in the order in which they are published, the class map last."""
        yield from self._probabilities()
        if self.confidence is not None or self.polygons is not None:
            style = MapStyle((f"confidence ({self.measure})",), scale=SCALE, tags=self.tags)
            # Polygons have a confidence, too.
            path = self.confidence or self.map.with_name(f"{self.map.name}.confidence")
            published = self.confidence is not None
            product = map_layers.confidence(self.measure)
            yield MapLayer("confidence", path, style, product, published)
        classes = tuple(self.classes)
        product = map_layers.class_map([cls.id for cls in classes], reject=self.reject)
        yield MapLayer("map", self.map, MapStyle(("class",), classes, tags=self.tags), product)

    def _probabilities(self) -> Iterator[MapLayer]:
        if self.probabilities is not None:
            style = MapStyle(tuple(cls.name for cls in self.classes), scale=SCALE, tags=self.tags)
            product = map_layers.probabilities(len(self.classes))
            yield MapLayer("probabilities", self.probabilities, style, product)
        if self.soft is not None:
            _, foreground = self.classes
            tags = {**self.tags, **classes_tag(self.classes)}
            style = MapStyle((foreground.name,), scale=SCALE, tags=tags)
            yield MapLayer("soft", self.soft, style, map_layers.class_probability(1))


@dataclass(frozen=True)
class SceneResult:
    """Result of one scene; the keys of `predict --json`."""

    input: str
    output: str | None
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    mpx_per_s: float = 0.0
    peak_rss_mb: float = 0.0
    wait: Wait = field(default_factory=Wait)
    status: Literal["done", "exists", "failed"] = "done"
    """`exists`: written by an earlier run with the same model, input and options."""
    error: str | None = None
    more: tuple[str, ...] = ()
    """Further files: other maps and quicklooks."""


ProgressCallback = Callable[[int, int, Wait], None]
"""Called with the number of finished pixels, that of all pixels, and the waiting times so far."""

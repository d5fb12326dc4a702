"""What is asked of a prediction, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rsseg_cli.choices import Confidence
from rsseg_cli.classes import Class
from rsseg_cli.predict import products
from rsseg_cli.predict.clock import Wait
from rsseg_cli.raster.blend import Product
from rsseg_cli.raster.class_names import classes_tag
from rsseg_cli.raster.map_style import MapStyle

SCALE = 1 / products.STEPS
"""Share = stored value * scale."""


@dataclass(frozen=True)
class Polygons:
    """How a class map becomes polygons; see `raster.polygonize`.

    Attributes:
        path: The GeoPackage.
        sieve: Patches of fewer pixels join a neighbour.
        simplify: Tolerance in units of the map's CRS.
    """

    path: Path
    sieve: int = 0
    simplify: float = 0.0


@dataclass(frozen=True)
class Made:
    """One map: what it is, where it goes, what it shows, how it is made, whether it appears."""

    kind: Literal["map", "probabilities", "soft", "confidence"]
    path: Path
    look: MapStyle
    product: Product
    shown: bool = True


@dataclass(frozen=True)
class Outputs:
    """The maps to make of a scene, all in one pass.

    Attributes:
        map: The class map.
        classes: What the K channels of the model are, in order.
        reject: Pixels whose highest probability is below this become nodata.
        probabilities: Where to put one band per class, in steps of 1/254.
        soft: Where to put one band with the share of the second of two classes, likewise.
        confidence: Where to put one band that says how sure the model is.
        measure: What sure means there.
        polygons: Polygons to draw from the class map.
        driver: `COG` or `GTiff`.
        options: Creation options of the driver.
        overwrite: Replace what is there.
        tags: How the maps were made; written into them.
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
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def bands(self) -> int:
        """Bands of all maps together."""
        shares = len(self.classes) if self.probabilities else 0
        return 1 + shares + bool(self.soft) + bool(self.confidence or self.polygons)

    def made(self) -> Iterator[Made]:
        """List the maps; the class map is the last to appear."""
        yield from self._shares()
        if self.confidence is not None or self.polygons is not None:
            look = MapStyle((f"confidence ({self.measure})",), scale=SCALE, tags=self.tags)
            # Polygons want to know it too; then it never appears.
            path = self.confidence or self.map.with_name(f"{self.map.name}.confidence")
            shown = self.confidence is not None
            yield Made("confidence", path, look, products.confidence(self.measure), shown)
        classes = tuple(self.classes)
        made = products.class_map([one.id for one in classes], reject=self.reject)
        yield Made("map", self.map, MapStyle(("class",), classes, tags=self.tags), made)

    def _shares(self) -> Iterator[Made]:
        if self.probabilities is not None:
            names = tuple(one.name for one in self.classes)
            look = MapStyle(names, scale=SCALE, tags=self.tags)
            product = products.probabilities(len(names))
            yield Made("probabilities", self.probabilities, look, product)
        if self.soft is not None:
            _, found = self.classes
            tags = {**self.tags, **classes_tag(self.classes)}
            look = MapStyle((found.name,), scale=SCALE, tags=tags)
            yield Made("soft", self.soft, look, products.share_of(1))


@dataclass(frozen=True)
class SceneResult:
    """What became of one scene; the keys of `predict --json`."""

    input: str
    output: str | None
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    mpx_per_s: float = 0.0
    peak_rss_mb: float = 0.0
    wait: Wait = field(default_factory=Wait)
    status: Literal["done", "there", "failed"] = "done"
    """`there`: a run with `resume` found the whole map."""
    error: str | None = None
    more: tuple[str, ...] = ()
    """What else was made: maps beside the class map, quicklooks."""

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> SceneResult:
        """Make it again from its `asdict`, which may have been JSON in between."""
        found = {**document, "wait": Wait(**document["wait"]), "more": tuple(document["more"])}
        return cls(**found)


Progress = Callable[[int, int, Wait], None]
"""Called with finished pixels, all pixels, and the waiting so far."""

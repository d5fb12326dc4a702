"""What is asked of a prediction, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rsseg_cli.classes import Class
from rsseg_cli.predict import products
from rsseg_cli.raster.blend import Product
from rsseg_cli.raster.parts import Look


@dataclass(frozen=True)
class Outputs:
    """The maps to make of a scene, all in one pass.

    Attributes:
        map: The class map.
        classes: What the K channels of the model are, in order.
        reject: Pixels whose highest probability is below this become nodata.
        probabilities: Where to put one band per class, in steps of 1/254.
        confidence: Where to put one band that says how sure the model is.
        measure: What sure means there.
        driver: `COG` or `GTiff`.
        options: Creation options of the driver.
        overwrite: Replace what is there.
        tags: How the maps were made; written into them.
    """

    map: Path
    classes: Sequence[Class]
    reject: float | None = None
    probabilities: Path | None = None
    confidence: Path | None = None
    measure: products.Confidence = "max"
    driver: str = "COG"
    options: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def bands(self) -> int:
        """Bands of all maps together."""
        shares = len(self.classes) if self.probabilities else 0
        return 1 + shares + (1 if self.confidence else 0)

    def made(self) -> Iterator[tuple[Path, Look, Product]]:
        """List the maps: where each goes, what it shows, how it is made."""
        classes = tuple(self.classes)
        made = products.class_map([one.id for one in classes], reject=self.reject)
        yield self.map, Look(("class",), classes, tags=self.tags), made
        scale = 1 / products.STEPS
        if self.probabilities is not None:
            names = tuple(one.name for one in classes)
            look = Look(names, scale=scale, tags=self.tags)
            yield self.probabilities, look, products.probabilities(len(classes))
        if self.confidence is not None:
            look = Look((f"confidence ({self.measure})",), scale=scale, tags=self.tags)
            yield self.confidence, look, products.confidence(self.measure)


@dataclass(frozen=True)
class Wait:
    """Share of the time for which the caller's thread had to wait, 0 to 1."""

    disk: float = 0.0
    device: float = 0.0
    writer: float = 0.0


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
    wait: Wait = Wait()
    status: Literal["done", "failed"] = "done"
    error: str | None = None


Progress = Callable[[int, int, Wait], None]
"""Called with finished pixels, all pixels, and the waiting so far."""

"""Pairs with three areas: labelled ground, unlabelled ground elsewhere, and ground to be tested.

The unlabelled and the tested ground look alike and share no pixel, as in the published protocol
(train split of the target without labels, its test split for the score). The labels of the
unlabelled ground are there, and a fit on them is the upper bound.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from generalise import pairs


@dataclass(frozen=True)
class Areas:
    """Training area, unlabelled target area and test area.

    Attributes:
        source: Value of `--src`.
        unlabelled: Value of `--tgt`, and of `--src` for the upper bound.
        tested: Value of `evaluate --on`.
        tile: Side of a training tile in pixels.
    """

    source: str
    unlabelled: str
    tested: str
    tile: int

    def fingerprint(self) -> str:
        """Return the digest of the dataset files."""
        both = [pairs.Pair(self.source, other) for other in (self.unlabelled, self.tested)]
        return hashlib.sha256("".join(one.fingerprint() for one in both).encode()).hexdigest()[:16]


Maker = Callable[[Path, Path], Areas]


def make(name: str, *, data: Path, work: Path) -> Areas:
    """Write the dataset files of one of `AREAS`; see `pairs.make`."""
    work.mkdir(parents=True, exist_ok=True)
    return AREAS[name](data.resolve(), work.resolve())


def _clouds(source: str, target: str, data: Path, work: Path) -> Areas:
    """Adapt to one half of the other sensor's scene; the other half is tested, as in `pairs`."""
    pair = pairs.make(f"cloud_{source}_to_{target}", data=data, work=work)
    halves = pairs.make(f"cloud_{target}_halves", data=data, work=work)
    return Areas(pair.source, halves.target, pair.target, pair.tile)


SCENES = """splits:
  seen: {glob: [images/south_1.tif, images/south_2.tif]}
  test: {glob: images/south_3.tif}
"""


def _sample(data: Path, work: Path) -> Areas:
    """Adapt to two scenes of the other region; the third is tested."""
    pair = pairs.make("sample_north_to_south", data=data, work=work)
    south = Path(pair.target)
    text = (south / "dataset.yaml").read_text(encoding="utf-8")
    path = work / "south_scenes.yaml"
    path.write_text(f"{text}root: {south}\n{SCENES}", encoding="utf-8")
    return Areas(pair.source, f"{path}:seen", f"{path}:test", pair.tile)


AREAS: dict[str, Maker] = {
    "sample_north_to_south": _sample,
    "cloud_s2_to_l7": partial(_clouds, "s2", "l7"),
    "cloud_l7_to_s2": partial(_clouds, "l7", "s2"),
}

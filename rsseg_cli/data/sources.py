"""Labelled data of a run: training and validation scenes, classes, bands."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from rsseg_cli.classes import Class
from rsseg_cli.contract import Bands
from rsseg_cli.data.pair import SourcePairs
from rsseg_cli.data.source import Source
from rsseg_cli.errors import RssegError
from rsseg_cli.settings import Json, Strict


@dataclass
class Sources:
    """The datasets of `--src`, opened and split."""

    class Config(Strict):
        """The section `data`: datasets and tiles."""

        src: tuple[str, ...] = ()
        """Datasets, in the form of `--src`."""
        class_map: str | None = None
        """Class map that is applied to all datasets."""
        tile: int = Field(512, ge=8)
        """Side of a training tile in pixels."""
        sampling: Literal["uniform", "balanced"] = "uniform"
        """Tile positions: `uniform` over all pixels, or `balanced` over the classes."""
        val_fraction: float = Field(0.2, ge=0, lt=1)
        """Fraction of the labelled area held out for validation if the dataset has no `val`."""
        class_weights: Literal["none", "balanced"] = "none"
        """`balanced` weights classes by the inverse square root of their frequency, at most 10."""

    sources: list[Source]
    train: list[SourcePairs]
    """Training scenes per dataset."""
    validation: list[SourcePairs]
    """Validation scenes per dataset, disjoint from all training pixels; may be empty."""
    classes: list[Class]
    """The classes, the same in all datasets."""
    bands: Bands
    """The channels, with mean and std over the training scenes of all datasets."""

    @classmethod
    def open(cls, config: Config, *, data_root: Path | None) -> Sources:
        """Open the datasets and split them.

        Raises:
            RssegError: There is no dataset, or the datasets differ in classes, bands or scale.
        """
        if not config.src:
            raise RssegError(
                "no training data",
                fix="--src FOLDER (with images/ and labels/), a dataset.yaml or a dataset preset",
            )
        sources = [
            Source.locate(
                text,
                data_root=data_root,
                holdout=config.val_fraction,
                class_map=config.class_map,
            )
            for text in config.src
        ]
        for other in sources[1:]:
            _check_same(sources[0], other)
        splits = [(source, *source.training_and_validation()) for source in sources]
        return cls(
            sources,
            [(source.opener, train) for source, train, _ in splits],
            [(source.opener, holdout) for source, _, holdout in splits if holdout],
            sources[0].classes,
            _pooled([source.bands(train) for source, train, _ in splits]),
        )

    @property
    def name(self) -> str:
        """Names of the datasets, joined."""
        return "+".join(source.spec.name for source in self.sources)

    def fingerprints(self) -> list[Json]:
        """Return a description of each dataset, with a hash of its file names and sizes."""
        fingerprints: list[Json] = []
        for source, (_, pairs) in zip(self.sources, self.train, strict=True):
            digest = hashlib.sha256()
            for pair in pairs:
                for path in (pair.image, pair.label):
                    size = path.stat().st_size if path is not None and path.exists() else 0
                    digest.update(f"{path and path.name} {size}\n".encode())
            fingerprints.append(
                {
                    "name": source.spec.name,
                    "root": str(source.root),
                    "licence": source.spec.licence,
                    "train": len(pairs),
                    "fingerprint": digest.hexdigest()[:16],
                }
            )
        return fingerprints


def _check_same(first: Source, other: Source) -> None:
    for key, values, other_values in (
        ("classes", [c.name for c in first.classes], [c.name for c in other.classes]),
        ("bands", [b.name for b in first.spec.bands], [b.name for b in other.spec.bands]),
        ("scale", [str(first.spec.scale)], [str(other.spec.scale)]),
    ):
        if values != other_values:
            raise RssegError(
                f"the sources differ in {key}: {', '.join(values)} / {', '.join(other_values)}",
                where=f"{first.spec.name} and {other.spec.name}",
                fix=f"the same `{key}` in the same order in both dataset.yaml",
            )


def _pooled(bands: Sequence[Bands]) -> Bands:
    """Pool mean and std over datasets of equal weight."""
    if len(bands) == 1:
        return bands[0]
    mean, std = [], []
    for channel in range(len(bands[0])):
        first_moment = sum(b.mean[channel] for b in bands) / len(bands)
        second_moment = sum(b.std[channel] ** 2 + b.mean[channel] ** 2 for b in bands) / len(bands)
        mean.append(first_moment)
        std.append((second_moment - first_moment**2) ** 0.5)
    return bands[0].model_copy(update={"mean": tuple(mean), "std": tuple(std)})

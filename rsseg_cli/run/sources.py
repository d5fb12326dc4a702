"""The labelled ground of a run: where to train and validate, which classes, which bands."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rsseg_cli.bands import Bands
from rsseg_cli.classes import Class
from rsseg_cli.config import Data
from rsseg_cli.data.pair import SourcePairs
from rsseg_cli.data.source import Source
from rsseg_cli.errors import RssegError
from rsseg_cli.settings import Json


@dataclass
class Sources:
    """What `--src` named, opened and split.

    Attributes:
        sources: The datasets.
        train: Ground to learn from, per dataset.
        validation: Ground to validate on, which no tile of `train` touches; may be empty.
        classes: The class list, the same in all.
        bands: The channels, with mean and std over the training ground of all.
    """

    sources: list[Source]
    train: list[SourcePairs]
    validation: list[SourcePairs]
    classes: list[Class]
    bands: Bands

    @classmethod
    def open(cls, data: Data, *, data_root: Path | None) -> Sources:
        """Find the datasets and split their ground.

        Raises:
            RssegError: Nothing is named or found, or datasets do not fit together.
        """
        if not data.src:
            raise RssegError(
                "there is nothing to learn from",
                fix="--src FOLDER (with images/ and labels/), a dataset.yaml or a dataset preset",
            )
        sources = [
            Source.locate(text, data_root=data_root, held_back=data.validation, class_map=data.map)
            for text in data.src
        ]
        for other in sources[1:]:
            _check_alike(sources[0], other)
        split = [source.training_and_validation() for source in sources]
        both = list(zip(sources, split, strict=True))
        return cls(
            sources,
            [(source.opener, train) for source, (train, _) in both],
            [(source.opener, held) for source, (_, held) in both if held],
            sources[0].classes,
            _joint([source.bands(train) for source, (train, _) in both]),
        )

    @property
    def name(self) -> str:
        """Names of the datasets, joined."""
        return "+".join(source.spec.name for source in self.sources)

    def fingerprints(self) -> Json:
        """Name the data: per dataset its files' names and sizes, hashed; contents are not read."""
        found: list[Json] = []
        for source, (_, pairs) in zip(self.sources, self.train, strict=True):
            total = hashlib.sha256()
            for pair in pairs:
                for path in (pair.image, pair.label):
                    size = path.stat().st_size if path is not None and path.exists() else 0
                    total.update(f"{path and path.name} {size}\n".encode())
            found.append(
                {
                    "name": source.spec.name,
                    "root": str(source.root),
                    "licence": source.spec.licence,
                    "train": len(pairs),
                    "fingerprint": total.hexdigest()[:16],
                }
            )
        return found


def _check_alike(first: Source, other: Source) -> None:
    for what, ours, theirs in (
        ("classes", [c.name for c in first.classes], [c.name for c in other.classes]),
        ("bands", [b.name for b in first.spec.bands], [b.name for b in other.spec.bands]),
        ("scale", [str(first.spec.scale)], [str(other.spec.scale)]),
    ):
        if ours != theirs:
            raise RssegError(
                f"the sources differ in {what}: {', '.join(ours)} / {', '.join(theirs)}",
                where=f"{first.spec.name} and {other.spec.name}",
                fix=f"the same `{what}` in the same order in both dataset.yaml",
            )


def _joint(found: Sequence[Bands]) -> Bands:
    """Pool mean and std, every dataset with the same weight."""
    if len(found) == 1:
        return found[0]
    mean, std = [], []
    for channel in range(len(found[0])):
        centre = sum(one.mean[channel] for one in found) / len(found)
        second = sum(one.std[channel] ** 2 + one.mean[channel] ** 2 for one in found) / len(found)
        mean.append(centre)
        std.append((second - centre**2) ** 0.5)
    return found[0].model_copy(update={"mean": tuple(mean), "std": tuple(std)})

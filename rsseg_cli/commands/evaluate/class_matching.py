"""Matches the classes of a model with those of a dataset, through a class map if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.data.source import Source
from rsseg_cli.data.spec.class_map import ClassMap, Merge
from rsseg_cli.errors import RssegError
from rsseg_cli.predict.pipeline import Infer


def reconcile(
    classes: Sequence[Class], source: Source, class_map: str | None, *, model: str
) -> tuple[Source, Merge | None]:
    """Bring a model and a dataset to the same classes.

    Args:
        classes: Those of the model.
        source: The dataset.
        class_map: File or preset of a class map; it is applied to the side that it fits.
        model: Name of the model, for errors.

    Returns:
        The dataset, its classes merged if the map starts from them; and the merge of the model's
        classes, None where they stay.

    Raises:
        RssegError: The classes differ, and no map leads from one to the other.
    """
    if class_map is None or _same(classes, source.classes):
        _require_same(classes, source, model)
        return source, None
    mapping = ClassMap.read(class_map)
    if _same(mapping.class_list(), classes):
        return replace(source, merge=mapping.fit(source.classes, where=source.spec.name)), None
    if _same(mapping.class_list(), source.classes):
        return source, mapping.fit(classes, where=model)
    raise RssegError(
        f"the class map {class_map} leads neither to the classes of the model nor to those of "
        f"{source.spec.name}: {_listed(mapping.class_list())}",
        where=f"{model}: {_listed(classes)}; {source.spec.name}: {_listed(source.classes)}",
        fix="a map whose `classes` are the ids and names of one of the two",
    )


def _require_same(classes: Sequence[Class], source: Source, model: str) -> None:
    if not _same(classes, source.classes):
        raise RssegError(
            "the classes of model and dataset differ: "
            f"{_listed(classes)} / {_listed(source.classes)}",
            where=f"{model}, {source.spec.name}",
            fix="the same ids and names, in the same order, in dataset.yaml (`remap` changes ids), "
            "or --class-map with a class map (`rsseg presets list`)",
        )


def _same(ours: Sequence[Class], theirs: Sequence[Class]) -> bool:
    return [(c.id, c.name) for c in ours] == [(c.id, c.name) for c in theirs]


def _listed(classes: Sequence[Class]) -> str:
    return ", ".join(f"{c.id} {c.name}" for c in classes)


class MergedInfer:
    """Probabilities of merged classes: those of classes that become one are added.

    A class without a counterpart is never predicted.

    Args:
        infer: Computes probabilities of the model's classes.
        merge: The merge.
    """

    def __init__(self, infer: Infer, merge: Merge) -> None:
        self._infer = infer
        self._matrix = torch.zeros(len(merge.classes), len(merge.table))
        for column, row in enumerate(merge.table):
            if row != IGNORE:
                self._matrix[row, column] = 1.0

    def __call__(self, tiles: Tensor) -> Tensor:
        """Return probabilities (B, K, T, T) of the merged classes for tiles (B, C, T, T)."""
        scores = self._infer(tiles)
        matrix = self._matrix.to(scores.device, scores.dtype)
        return torch.einsum("mk,bkhw->bmhw", matrix, scores)

"""Matches the classes of a model with those of a dataset, optionally through a class map."""

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
    """Convert a model and a dataset to the same classes.

    Args:
        classes: Classes of the model.
        source: The dataset.
        class_map: File or preset of a class map; it is applied to the model or the dataset.
        model: Name of the model, for errors.

    Returns:
        The dataset, with merged classes if the map applies to it; and the merge of the model's
        classes, None if the map does not apply to the model.

    Raises:
        RssegError: The classes differ, and the map does not convert one to the other.
    """
    if class_map is None or _same(classes, source.classes):
        require_same_classes(
            classes,
            source.classes,
            of="model and dataset",
            where=f"{model}, {source.spec.name}",
            fix="the same ids and names, in the same order, in dataset.yaml (`remap` changes ids), "
            "or --class-map with a class map (`rsseg presets list`)",
        )
        return source, None
    mapping = ClassMap.read(class_map)
    if _same(mapping.class_list(), classes):
        return replace(source, merge=mapping.fit(source.classes, where=source.spec.name)), None
    if _same(mapping.class_list(), source.classes):
        return source, mapping.fit(classes, where=model)
    raise RssegError(
        f"the classes of the class map {class_map} are neither those of the model nor those of "
        f"{source.spec.name}: {_listed(mapping.class_list())}",
        where=f"{model}: {_listed(classes)}; {source.spec.name}: {_listed(source.classes)}",
        fix="a map whose `classes` are the ids and names of one of the two",
    )


def require_same_classes(
    ours: Sequence[Class], theirs: Sequence[Class], *, of: str, where: str, fix: str
) -> None:
    """Raise an error if ids, names or order of classes differ; `of` names both sides."""
    if not _same(ours, theirs):
        raise RssegError(
            f"the classes of {of} differ: {_listed(ours)} / {_listed(theirs)}", where=where, fix=fix
        )


def _same(ours: Sequence[Class], theirs: Sequence[Class]) -> bool:
    return [(c.id, c.name) for c in ours] == [(c.id, c.name) for c in theirs]


def _listed(classes: Sequence[Class]) -> str:
    return ", ".join(f"{c.id} {c.name}" for c in classes)


class MergedInfer:
    """Probabilities of merged classes: the sums of those of their original classes.

    Original classes without a merged class are left out.

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
        probabilities = self._infer(tiles)
        matrix = self._matrix.to(probabilities.device, probabilities.dtype)
        return torch.einsum("mk,bkhw->bmhw", matrix, probabilities)

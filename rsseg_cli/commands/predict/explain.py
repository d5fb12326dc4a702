"""Maps of a method's internal decisions, such as the expert that it chose for each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.classes import Class, default_color
from rsseg_cli.commands.model import LoadedModel
from rsseg_cli.commands.predict.provenance import dependencies_digest
from rsseg_cli.errors import RssegError
from rsseg_cli.predict.outputs import Outputs
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training.precision import Precision


@dataclass(frozen=True)
class Explanation:
    """A map of a method's internal decisions; the engine's `Infer`.

    Attributes:
        name: Key of `Method.explanations`.
        block: Number of the backbone's block that is explained, from 0.
        classes: The alternatives between which the method decides.
    """

    name: str
    block: int
    classes: tuple[Class, ...]
    model: Segmenter
    precision: Precision

    def __call__(self, tiles: Tensor) -> Tensor:
        """Compute the weights of E alternatives for tiles (B, C, T, T); return (B, E, T, T)."""
        method, backbone = self.model.method, self.model.backbone
        with torch.inference_mode(), self.precision.autocast():
            image = self.model.standardise(tiles)
            _, state = backbone.walk(image, method, stop=self.block)
            weights = method.explain(self.name, state)
            return F.interpolate(weights.float(), image.shape[-2:], mode="nearest")

    def outputs(self, like: Outputs, stem: Path) -> Outputs:
        """Build the output specification, like that of the class map."""
        dependencies = {
            **(like.dependencies or {}), "--explain": self.name, "--block": str(self.block)
        }  # fmt: skip
        tags = {
            "explains": self.name,
            "block": str(self.block),
            "journal": dependencies_digest(dependencies),
        }
        return Outputs(
            stem.with_name(f"{stem.name}.{self.name}.tif"),
            self.classes,
            driver=like.driver,
            options=like.options,
            overwrite=like.overwrite,
            dependencies=dependencies,
            tags={**like.tags, **tags},
        )


def choose_explanations(
    names: Sequence[str], block: int | None, fitted: LoadedModel, precision: Precision
) -> list[Explanation]:
    """Return the explanations with these names, of one block (from 0) or the last block.

    Raises:
        RssegError: The method offers no such map, or the backbone has no such block.
    """
    model = fitted.model
    offered, depth = model.method.explanations(), model.backbone.depth
    for name in names:
        if name not in offered:
            raise _unknown(name, list(offered), fitted)
    if block is not None and not 0 <= block < depth:
        raise RssegError(
            f"there is no block {block}",
            where=f"--block {block}, model {fitted.name}",
            fix=f"--block 0 to {depth - 1}, the first to the last block of the backbone",
        )
    number = depth - 1 if block is None else block
    return [Explanation(n, number, _classes(offered[n]), model, precision) for n in names]


def _unknown(name: str, offered: Sequence[str], fitted: LoadedModel) -> RssegError:
    method, where = fitted.config.method.name, f"--explain {name}, model {fitted.name}"
    if not offered:
        return RssegError(
            f"{method}, as configured, offers no maps for --explain",
            where=where,
            fix="leave --explain out",
        )
    near = get_close_matches(name, offered, n=1) or offered[:1]
    return RssegError(
        f"{method} offers no map named {name} for --explain",
        where=where,
        fix=f"--explain {near[0]} (offered: {', '.join(offered)})",
    )


def _classes(names: Sequence[str]) -> tuple[Class, ...]:
    return tuple(Class(index + 1, name, default_color(index)) for index, name in enumerate(names))

"""Maps of a method's own work: what it chose where, on the grid of the scene."""

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
from rsseg_cli.commands.predict.provenance import journal_digest
from rsseg_cli.errors import RssegError
from rsseg_cli.predict.outputs import Outputs
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training.precision import Precision


@dataclass(frozen=True)
class Explanation:
    """A map of a method's own work; the engine's `Infer`.

    Attributes:
        name: What the method calls it.
        block: The block at which it is made, from 0.
        things: What it tells apart, as classes of the map.
        model: In eval mode, on the device.
        precision: Format of matrix products.
    """

    name: str
    block: int
    things: tuple[Class, ...]
    model: Segmenter
    precision: Precision

    def __call__(self, tiles: Tensor) -> Tensor:
        """Compute the shares of E things for each pixel of tiles (B, C, T, T): (B, E, T, T)."""
        method, backbone = self.model.method, self.model.backbone
        with torch.inference_mode(), self.precision.autocast():
            image = self.model.standardise(tiles)
            _, state = backbone.walk(image, method, stop=self.block)
            shares = method.explain(self.name, state)
            return F.interpolate(shares.float(), image.shape[-2:], mode="nearest")

    def path(self, stem: Path) -> Path:
        """Return the path of the map."""
        return stem.with_name(f"{stem.name}.{self.name}.tif")

    def journal(self, journal: dict[str, str]) -> dict[str, str]:
        """Return all settings that the map depends on."""
        return journal | {"--explain": self.name, "--block": str(self.block)}

    def outputs(self, like: Outputs, stem: Path, journal: dict[str, str]) -> Outputs:
        """Return the output specification, in the format of the class map."""
        journal = self.journal(journal)
        about = {
            "explains": self.name,
            "block": str(self.block),
            "journal": journal_digest(journal),
        }
        return Outputs(
            self.path(stem),
            self.things,
            driver=like.driver,
            options=like.options,
            overwrite=like.overwrite,
            journal=journal,
            tags={**like.tags, **about},
        )


def choose(
    names: Sequence[str], block: int | None, fitted: LoadedModel, precision: Precision
) -> list[Explanation]:
    """Return the requested maps.

    Args:
        names: What the method calls them.
        block: The block at which they are made, from 0; the last when None.
        fitted: The model.
        precision: Format of matrix products.

    Raises:
        RssegError: The method offers no such map, or the backbone has no such block.
    """
    model, method = fitted.model, fitted.config.method.name
    offered, depth = model.method.explanations(), model.backbone.depth
    for name in names:
        if name not in offered:
            near = get_close_matches(name, offered, n=1)
            raise RssegError(
                f"{method} cannot explain {name}"
                if offered
                else f"{method}, as it was fitted, offers no map of its own work",
                where=f"--explain {name}, model {fitted.name}",
                fix=f"--explain {near[0] if near else ' or '.join(offered)}"
                + (f" (offered: {', '.join(offered)})" if near else "")
                if offered
                else "leave --explain out",
            )
    if block is not None and not 0 <= block < depth:
        raise RssegError(
            f"there is no block {block}",
            where=f"--block {block}, model {fitted.name}",
            fix=f"0 to {depth - 1}, the first to the last block of the backbone",
        )
    at = depth - 1 if block is None else block
    return [Explanation(n, at, _things(offered[n]), model, precision) for n in names]


def _things(names: Sequence[str]) -> tuple[Class, ...]:
    return tuple(Class(index + 1, name, default_color(index)) for index, name in enumerate(names))

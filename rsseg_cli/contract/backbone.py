"""Backbone: a frozen transformer whose blocks run one by one, and the seam for methods."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rsseg_cli.contract.bands import Bands
from rsseg_cli.contract.features import Features, S
from rsseg_cli.contract.projection import Listener, Projection, Role, require_partial
from rsseg_cli.contract.token_grid import Grid
from rsseg_cli.settings import Json, Strict

if TYPE_CHECKING:
    from rsseg_cli.contract.method import Method


class Backbone(nn.Module):
    """A transformer whose blocks can be walked one by one.

    A subclass sets the attributes below, implements `embed`, `run` and `projections`, and takes
    `(config, bands)` in its constructor. It stays in eval mode: nothing in it is random.
    """

    class Config(Strict):
        """Settings of every backbone; families add their own."""

    sizes: ClassVar[Mapping[str, Any]]
    """Sizes by the second part of a backbone's name, after that of the family."""
    dim: int
    """Width D of a token."""
    depth: int
    """Number of blocks L."""
    patch: int
    """Side of a patch in pixels; image sides are multiples of it."""
    num_prefix_tokens: int
    """Class and register tokens before the patches: 0, 1 or 5."""
    out_indices: tuple[int, ...]
    """Blocks whose output becomes a map, in ascending order."""
    bands: Bands
    takes_prompts: ClassVar[bool] = True
    """Whether `run` accepts `extra` tokens; methods that need them raise an error otherwise."""
    supports_queries: ClassVar[bool] = False
    """Whether `cross_attend` is implemented; methods that need it raise an error otherwise."""
    weights_are_public: bool = False
    """Whether the weights can be downloaded again; otherwise model files contain them."""
    origin: Mapping[str, Json] = MappingProxyType({})
    """Where the weights come from and how they were fitted; `fingerprint` hashes it."""
    recompute = False
    """Activation checkpointing: compute activations inside blocks again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self._beside: dict[int, list[Listener]] = {}

    @classmethod
    def licence(cls, size: str) -> tuple[str, str]:
        """Return the licence of a size's weights, empty if unknown, and the page that states it."""
        raise NotImplementedError

    def embed(self, image: Tensor) -> tuple[Tensor, Grid]:
        """Turn a standardised image (B, C, H, W) into tokens (B, P+N, D) and their grid."""
        raise NotImplementedError

    def run(self, index: int, tokens: Tensor, grid: Grid, extra: int = 0) -> Tensor:
        """Apply block `index`, its two residual lines spelled out.

        The second line ends with `+ self.parallel_branch(index, tokens_between)`. `extra` tokens
        stand between prefix and patches; rotary embeddings leave them alone.
        """
        raise NotImplementedError

    def cross_attend(self, index: int, queries: Tensor, tokens: Tensor, grid: Grid) -> Tensor:
        """Apply block `index` to rows that attend to its input and that nothing attends to.

        Args:
            index: The block.
            queries: (B, Q, D), rows without a position: rotary embeddings leave them unchanged.
            tokens: (B, P+N, D), what goes into the block; what comes out of it stays the same.
            grid: The layout of the tokens.

        Returns:
            (B, Q, D), the rows after both residual lines.
        """
        raise NotImplementedError

    def projections(self, index: int, role: Role) -> list[Projection]:
        """List the linear maps of block `index` that play a role."""
        raise NotImplementedError

    def listen_beside_mlp(self, index: int, listener: Listener) -> None:
        """Add `listener(tokens)` beside the MLP of a block.

        The listener gets the raw residual stream (B, T, D) between the two branches; its result
        is added to the stream after the MLP branch's layer scale.
        """
        require_partial(listener)
        self._beside.setdefault(index, []).append(listener)

    def parallel_branch(self, index: int, tokens: Tensor) -> Tensor | float:
        """Sum the outputs of the listeners beside the MLP of block `index`."""
        total: Tensor | float = 0.0
        for listener in self._beside.get(index, ()):
            total = total + listener(tokens)
        return total

    def to_map(self, tokens: Tensor, grid: Grid, extra: int = 0) -> Tensor:
        """Lay the patch tokens of (B, P+extra+N, D) out as (B, D, h, w), averaged over groups."""
        return grid.mean_over_groups(tokens[:, self.num_prefix_tokens + extra :])

    def forward(self, image: Tensor, method: Method[Any]) -> Features:
        """Compute the features of a standardised image (B, C, H, W)."""
        return method.finish(*self.walk(image, method))

    def walk(
        self, image: Tensor, method: Method[S], stop: int | None = None
    ) -> tuple[list[Tensor], S]:
        """Run the blocks with a method in between: THE SEAM.

        Args:
            image: (B, C, H, W), standardised.
            method: The method whose hooks are called.
            stop: The last block to run, from 0; None runs all.

        Returns:
            The tapped maps and the method's state after the last block that ran.
        """
        tokens, grid = self.embed(image)
        state, maps = method.begin(image, grid), []
        for index in range(self.depth if stop is None else stop + 1):
            tokens = method.before_block(index, tokens, state)
            tokens = self._run(index, tokens, grid, state.extra)
            tokens = method.after_block(index, tokens, state)
            if index in self.out_indices:
                maps.append(self.to_map(tokens, grid, state.extra))
        return maps, state

    def _run(self, index: int, tokens: Tensor, grid: Grid, extra: int) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(
                self.run, index, tokens, grid, extra, use_reentrant=False
            )
            return recomputed
        return self.run(index, tokens, grid, extra)

    def train(self, mode: bool = True) -> Backbone:
        """Stay in eval mode whatever `mode` is: dropout and drop-path never act."""
        super().train(False)
        return self


def fingerprint(backbone: Backbone) -> str:
    """Compute a hash of a backbone as it was loaded; model files keep it.

    It covers the tensors that were read and how they were fitted to patch and bands
    (`Backbone.origin`), but not the name of their file: it is equal across processes and machines.
    """
    fitted = {key: value for key, value in backbone.origin.items() if key != "source"}
    shapes = {name: list(tensor.shape) for name, tensor in backbone.state_dict().items()}
    text = json.dumps([fitted, shapes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

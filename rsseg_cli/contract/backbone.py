"""Backbone: a frozen transformer whose blocks run one by one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rsseg_cli.contract.bands import Bands
from rsseg_cli.contract.features import Features, Grid, StateT
from rsseg_cli.contract.projection import Branch, Projection, Role, check_branch
from rsseg_cli.settings import Json, Strict

if TYPE_CHECKING:
    from rsseg_cli.contract.method import Method


class Backbone(nn.Module):
    """A transformer whose blocks run one by one, with a method in between.

    A subclass sets the attributes below, implements `embed`, `run` and `projections`, and takes
    `(config, bands)` in its constructor. It stays in eval mode: nothing in it is random.
    """

    class Config(Strict):
        """Settings of every backbone; families add theirs."""

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
    """Blocks whose output becomes a feature map, in ascending order."""
    bands: Bands
    takes_prompts: ClassVar[bool] = True
    """Whether `run` accepts `extra` tokens; methods that need them raise an error otherwise."""
    supports_queries: ClassVar[bool] = False
    """Whether `cross_attend` is implemented; methods that need it raise an error otherwise."""
    weights_are_public: bool = False
    """Whether the weights can be downloaded again; otherwise model files contain them."""
    origin: Mapping[str, Json] = MappingProxyType({})
    """Source of the weights and how they were adapted; `fingerprint` hashes it."""
    recompute = False
    """Activation checkpointing: compute activations inside blocks again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self._branches: dict[int, list[Branch]] = {}

    @classmethod
    def licence(cls, size: str) -> tuple[str, str]:
        """Return the licence of a size's weights, empty if unknown, and the page that states it."""
        raise NotImplementedError

    def embed(self, image: Tensor) -> tuple[Tensor, Grid]:
        """Compute tokens (B, P+N, D) and their grid from a standardised image (B, C, H, W)."""
        raise NotImplementedError

    def run(self, index: int, tokens: Tensor, grid: Grid, extra: int = 0) -> Tensor:
        """Apply block `index` to tokens (B, P+extra+N, D).

        Both residual sums are written out, and the second one ends with
        `+ self.parallel_branch(index, tokens_between)`. The `extra` tokens stand between prefix and
        patches; rotary embeddings do not change them.
        """
        raise NotImplementedError

    def cross_attend(self, index: int, queries: Tensor, tokens: Tensor, grid: Grid) -> Tensor:
        """Apply block `index` to extra rows (B, Q, D) that attend to its input (B, P+N, D).

        The tokens do not attend to these rows, so that the block's own output stays the same. The
        rows have no position: rotary embeddings do not change them. The result is (B, Q, D), the
        rows after both residual sums.
        """
        raise NotImplementedError

    def projections(self, index: int, role: Role) -> list[Projection]:
        """Return the linear layers of block `index` with this role."""
        raise NotImplementedError

    def add_parallel_branch(self, index: int, branch: Branch) -> None:
        """Add `branch(tokens)` in parallel to the MLP of a block.

        Its input is the residual stream (B, T, D) between attention and MLP, before the norm. Its
        output is added to the stream after the layer scale of the MLP.
        """
        check_branch(branch)
        self._branches.setdefault(index, []).append(branch)

    def parallel_branch(self, index: int, tokens: Tensor) -> Tensor | float:
        """Compute the sum of all branches in parallel to the MLP of block `index`."""
        total: Tensor | float = 0.0
        for branch in self._branches.get(index, ()):
            total = total + branch(tokens)
        return total

    def to_map(self, tokens: Tensor, grid: Grid, extra: int = 0) -> Tensor:
        """Reshape the patches of (B, P+extra+N, D) to (B, D, h, w), averaged over groups."""
        return grid.mean_over_groups(tokens[:, self.num_prefix_tokens + extra :])

    def forward(self, image: Tensor, method: Method[Any]) -> Features:
        """Compute the features of a standardised image (B, C, H, W)."""
        return method.finish(*self.walk(image, method))

    def walk(
        self, image: Tensor, method: Method[StateT], stop: int | None = None
    ) -> tuple[list[Tensor], StateT]:
        """Run the blocks and, before and after each, the method's hooks.

        Args:
            image: (B, C, H, W), standardised.
            method: Its hooks are called.
            stop: The last block to run, from 0; None runs all.

        Returns:
            The feature maps, and the method's state after the last block that ran.
        """
        recompute = self.recompute and torch.is_grad_enabled()
        run: Callable[..., Tensor] = (
            partial(checkpoint, self.run, use_reentrant=False) if recompute else self.run
        )
        tokens, grid = self.embed(image)
        state, maps = method.begin(image, grid), []
        for index in range(self.depth if stop is None else stop + 1):
            tokens = method.before_block(index, tokens, state)
            tokens = run(index, tokens, grid, state.extra)
            tokens = method.after_block(index, tokens, state)
            if index in self.out_indices:
                maps.append(self.to_map(tokens, grid, state.extra))
        return maps, state

    def train(self, mode: bool = True) -> Backbone:
        """Stay in eval mode for every `mode`: dropout and drop-path stay off."""
        super().train(False)
        return self


def fingerprint(backbone: Backbone) -> str:
    """Compute a hash of a backbone as it was loaded, which model files store.

    It covers the pretrained tensors and how they were adapted to patch and bands
    (`Backbone.origin`), but not the path of their file: it is equal on all machines.
    """
    origin = {key: value for key, value in backbone.origin.items() if key != "source"}
    shapes = {name: list(tensor.shape) for name, tensor in backbone.state_dict().items()}
    text = json.dumps([origin, shapes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

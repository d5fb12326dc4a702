"""The map of rsseg: backbone, method and head, and the one seam between them.

Shape legend, used everywhere: B batch, C bands, H W pixels, h w token rows and columns, G token
groups per location, N = h*w*G patch tokens, P prefix tokens (class and registers), D width,
K classes, Q queries, L blocks.

A model is a `Backbone` that walks its blocks, a `Method` that sits between the blocks or beside
their branches, and a `Head` that turns feature maps into class scores. None of the three depends
on the kind of the others. Images reach this level *standardised* (see `Bands`), with nodata at 0.
The types in these interfaces are in the files beside this one: `bands`, `grid`, `projection` and
`step`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.checkpoint import checkpoint

from rsseg_cli.bands import Bands
from rsseg_cli.errors import RssegError
from rsseg_cli.grid import Grid
from rsseg_cli.plain import Json, Strict
from rsseg_cli.projection import Listener, Projection, Role, require_partial
from rsseg_cli.step import Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Features:
    """The input of a head."""

    maps: list[Tensor]
    """Each (B, D, h, w), finest first. A plain transformer gives several of one size."""
    queries: Tensor | None = None
    """(Q, D') or (B, Q, D') for heads that decode with queries."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Extra terms of the loss, already weighted."""

    def part(self, start: int, stop: int) -> Features:
        """Take images `start` to `stop` - 1 of the batch; the losses are of the whole and stay."""
        queries = self.queries
        if queries is not None and queries.ndim == 3:
            queries = queries[start:stop]
        return Features([one[start:stop] for one in self.maps], queries)


@dataclass(frozen=True)
class QueryShape:
    """The queries that a head takes from the method: how many, and how wide they are."""

    count: int
    width: int


@dataclass
class State:
    """The state of a method during one forward pass; methods add their own fields."""

    grid: Grid
    extra: int = 0
    """Tokens that the method has put between the prefix and the patches (prompts)."""


S = TypeVar("S", bound=State)


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


class Method(nn.Module, Generic[S]):
    """How a frozen backbone is tuned. Every hook has a do-nothing default.

    A subclass takes `(config, backbone)` in its constructor, and `queries` as well if it makes
    any. It may listen there (`Projection.listen`, `Backbone.listen_beside_mlp`). All that must
    survive a restart lives in its parameters and buffers.
    """

    class Config(Strict):
        """Settings of the method; a subclass lists its own, each with its source."""

        def without_files(self) -> Self:
            """Return settings that read no weights, for measuring what a step costs."""
            return self

    makes_queries: ClassVar[bool] = False
    """Whether the constructor takes a `QueryShape`, which `finish` then makes queries of."""
    multiple: int = 1
    """Image sides are padded to a multiple of this and of the patch."""

    def __init__(
        self, config: Config, backbone: Backbone, queries: QueryShape | None = None
    ) -> None:
        super().__init__()

    @classmethod
    def build(cls, config: Config, backbone: Backbone, queries: QueryShape | None = None) -> Self:
        """Build the method for a head that takes such queries, or none.

        Raises:
            RssegError: The head takes queries and the method makes none.
        """
        if cls.makes_queries:
            return cls(config, backbone, queries)
        if queries is not None:
            raise RssegError(
                "the head takes its queries from the method, which makes none",
                where="head.query_position",
                fix="head.query_position: learned, or a method with tokens, such as rein",
            )
        return cls(config, backbone)

    def trainable_parameters(self, backbone: Backbone) -> Iterator[tuple[str, Parameter]]:
        """Return everything the method may ever train: its own and, if so, the backbone's.

        Names of the backbone's parameters start with `backbone.`, its own with `method.`.
        The loop sets `requires_grad` of these (and the head's) once; hooks may flip it later.
        """
        for name, parameter in self.named_parameters():
            yield f"method.{name}", parameter

    def num_feature_maps(self, backbone: Backbone) -> int:
        """Count the maps that `finish` hands to the head."""
        return len(backbone.out_indices)

    def no_weight_decay(self) -> Collection[Parameter]:
        """Return own parameters without weight decay besides the biases, norms and scalars."""
        return ()

    def no_grad_clip(self) -> Collection[Parameter]:
        """Return parameters whose gradients stay out of the shared clip."""
        return ()

    # --- forward -----------------------------------------------------------------------------
    def begin(self, image: Tensor, grid: Grid) -> S:
        """Start a pass: make the state, from the standardised image (B, C, H, W) if need be."""
        return State(grid)  # type: ignore[return-value]

    def before_block(self, index: int, tokens: Tensor, state: S) -> Tensor:
        """Change the tokens (B, P+extra+N, D) that go into a block."""
        return tokens

    def after_block(self, index: int, tokens: Tensor, state: S) -> Tensor:
        """Change the tokens that come out of a block, before they are tapped."""
        return tokens

    def finish(self, maps: list[Tensor], state: S) -> Features:
        """Hand the tapped maps to the head, with queries and losses if the method has them."""
        return Features(maps)

    # --- training ----------------------------------------------------------------------------
    def before_step(self, step: Step) -> None:
        """Return what trains in this step (phases, selections); may run probes.

        After a restart `requires_grad` is as the loop first set it: derive it from buffers here.
        """

    def before_update(self, step: Step) -> None:
        """Change gradients between backward and clip."""

    def after_step(self, step: Step) -> None:
        """Restore parameters that this step must not change."""

    # --- files and pictures --------------------------------------------------------------------
    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        """Return the tensors of a model file: own state and the backbone's trained parameters.

        Values are absolute, not differences: loading them twice changes nothing.
        """
        tensors = {f"method.{name}": tensor for name, tensor in self.state_dict().items()}
        for name, parameter in self.trainable_parameters(backbone):
            if name.startswith("backbone."):
                tensors[name] = parameter.detach()
        return tensors

    def load_adapter_state(self, tensors: dict[str, Tensor], backbone: Backbone) -> None:
        """Load the result of `adapter_state` into a newly built method and backbone."""
        own = {
            name.removeprefix("method."): t for name, t in tensors.items() if name[:7] == "method."
        }
        self.load_state_dict(own)
        tuned = dict(self.trainable_parameters(backbone))
        with torch.no_grad():
            for name, tensor in tensors.items():
                if name.startswith("backbone."):
                    tuned[name].copy_(tensor)

    def log_entry(self) -> dict[str, Json]:
        """Return what this method adds to a line of `metrics.jsonl`.

        A mapping `cost` names shares of the training time, which the progress line shows.
        """
        return {}

    @classmethod
    def figures(cls, records: Sequence[dict[str, Json]]) -> Iterator[tuple[str, Figure]]:
        """Draw the method's own figures for the report from the lines of `metrics.jsonl`."""
        yield from ()

    def explanations(self) -> Mapping[str, tuple[str, ...]]:
        """Return the maps of its own work that the method offers, each with the names it shows."""
        return {}

    def explain(self, name: str, state: S) -> Tensor:
        """Compute one of these maps, in eval mode.

        Args:
            name: One of `explanations`, which names E things.
            state: The state after the block that is explained (`Backbone.walk` with `stop`).

        Returns:
            (B, E, h, w) shares of the E things per token: non-negative, summing to 1 over E.
        """
        raise NotImplementedError


@dataclass
class Output:
    """The prediction of a head for a batch; each head extends it."""

    size: tuple[int, int]
    """(H, W) of the image."""

    def probabilities(self) -> Tensor:
        """Class probabilities (B, K, H, W): non-negative, summing to 1 over K."""
        raise NotImplementedError


O = TypeVar("O", bound=Output)  # noqa: E741 - the type of a head's output


class Head(nn.Module, Generic[O]):
    """Turns features into class scores and computes their loss.

    A subclass takes `(config, dim, maps, classes)`: width D and number of the maps it will get,
    and the number of classes K.
    """

    class Config(Strict):
        """Settings of the head."""

        @property
        def queries_of_method(self) -> QueryShape | None:
            """Shape of the queries that the head takes from the method; None: it takes none."""
            return None

    class_weights: Tensor

    def __init__(self, config: Config, *, dim: int, maps: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("class_weights", torch.ones(classes), persistent=False)

    def forward(self, features: Features, size: tuple[int, int]) -> O:
        """Score an image of `size` = (H, W) from its features."""
        raise NotImplementedError

    def losses(self, output: O, labels: Tensor) -> dict[str, Tensor]:
        """Named, weighted terms of the loss.

        Args:
            output: What `forward` returned.
            labels: (B, H, W) class indices 0..K-1, `IGNORE` elsewhere. An image without any
                labelled pixel adds 0 and no NaN.
        """
        raise NotImplementedError

"""Method: trainable modules around a frozen backbone, and hooks into training."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from rsseg_cli.contract.backbone import Backbone
from rsseg_cli.contract.features import Features, Grid, QueryShape, State, StateT
from rsseg_cli.errors import RssegError
from rsseg_cli.settings import Json, Strict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Probe(Protocol):
    """Labelled samples whose gradients a method measures, apart from the training stream."""

    def backward(self) -> float:
        """Return the task loss and store its gradients, replacing all others, in `.grad`.

        They are fp32 and unscaled. Each call uses the same samples, crops, matching points and
        random numbers.
        """


class Step(Protocol):
    """The current training step."""

    index: int
    """Number of this step, from 0."""
    total: int
    """Number of steps of the whole run."""

    def probes(self, count: int, *, samples: int = 1) -> Iterator[Probe]:
        """Yield `count` probes of `samples` images each; several processes divide them.

        No parameter is updated, the training stream is not used, and gradients are removed after
        the last probe.
        """

    def average(self, tensor: Tensor) -> Tensor:
        """Average a tensor over all processes, in place; all of them must call it."""


class Method(nn.Module, Generic[StateT]):
    """Base class of fine-tuning methods; every hook does nothing unless overridden.

    A subclass takes `(config, backbone)` in its constructor, and `queries` if `makes_queries`. The
    constructor may add branches (`Projection.add_branch`, `Backbone.add_parallel_branch`). State
    that must survive a restart is kept in parameters and buffers.
    """

    class Config(Strict):
        """Settings of the method; a subclass adds its own, each with its source."""

        def without_files(self) -> Self:
            """Return settings that read no weights, for measuring the cost of a step."""
            return self

    makes_queries: ClassVar[bool] = False
    """Whether the constructor takes a `QueryShape`, the shape of the queries of `finish`."""
    multiple: int = 1
    """Image sides are padded to a multiple of this and of the patch."""

    def __init__(
        self, config: Config, backbone: Backbone, queries: QueryShape | None = None
    ) -> None:
        super().__init__()

    @classmethod
    def build(cls, config: Config, backbone: Backbone, queries: QueryShape | None = None) -> Self:
        """Build the method for a head that needs these queries, or none.

        Raises:
            RssegError: The head needs queries and the method has none.
        """
        if cls.makes_queries:
            return cls(config, backbone, queries)
        if queries is not None:
            raise RssegError(
                "the head needs queries from the method, which has none",
                where="head.query_position",
                fix="head.query_position: learned, or a method with tokens, such as rein",
            )
        return cls(config, backbone)

    def trainable_parameters(self, backbone: Backbone) -> Iterator[tuple[str, Parameter]]:
        """Yield all parameters that may train, with names.

        The method's names start with `method.`, those of the backbone, if any, with `backbone.`.
        `Segmenter.freeze` enables `requires_grad` of these once; hooks may change it later.
        """
        for name, parameter in self.named_parameters():
            yield f"method.{name}", parameter

    def num_feature_maps(self, backbone: Backbone) -> int:
        """Return the number of feature maps of `finish`."""
        return len(backbone.out_indices)

    def no_weight_decay(self) -> Collection[Parameter]:
        """Return parameters without weight decay, besides biases, norms and scalars."""
        return ()

    def no_grad_clip(self) -> Collection[Parameter]:
        """Return parameters that gradient clipping leaves out."""
        return ()

    # --- forward -----------------------------------------------------------------------------
    def begin(self, image: Tensor, grid: Grid) -> StateT:
        """Return the state of a new forward pass on a standardised image (B, C, H, W)."""
        return State(grid)  # type: ignore[return-value]

    def before_block(self, index: int, tokens: Tensor, state: StateT) -> Tensor:
        """Return the input of a block from the output (B, P+extra+N, D) of the one before."""
        return tokens

    def after_block(self, index: int, tokens: Tensor, state: StateT) -> Tensor:
        """Return the changed output of a block; feature maps are taken from the result."""
        return tokens

    def finish(self, maps: list[Tensor], state: StateT) -> Features:
        """Return the features for the head, with queries and losses if the method has them."""
        return Features(maps)

    # --- training ----------------------------------------------------------------------------
    def before_step(self, step: Step) -> None:
        """Select the parameters that train in this step; may run probes.

        After a restart `requires_grad` is as in the first step: derive it from buffers here.
        """

    def before_update(self, step: Step) -> None:
        """Change gradients after backward and before clipping."""

    def after_step(self, step: Step) -> None:
        """Restore parameters that this step must not change."""

    # --- files and pictures --------------------------------------------------------------------
    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        """Return the tensors for a model file: the method's state and trained backbone parameters.

        Values are absolute, not differences: loading them twice is the same as once.
        """
        tensors = {f"method.{name}": tensor for name, tensor in self.state_dict().items()}
        for name, parameter in self.trainable_parameters(backbone):
            if name.startswith("backbone."):
                tensors[name] = parameter.detach()
        return tensors

    def trained_shapes(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of those tensors of a model file that depend on the training.

        All others have the shapes of a newly built method.
        """
        return {}

    def load_adapter_state(self, tensors: dict[str, Tensor], backbone: Backbone) -> None:
        """Load the result of `adapter_state` into a newly built method and backbone.

        `Segmenter.load_adapter_state` has checked the names and shapes of the tensors.
        """
        state = {n.removeprefix("method."): t for n, t in tensors.items() if n[:7] == "method."}
        self.load_state_dict(state)
        trainable = dict(self.trainable_parameters(backbone))
        with torch.no_grad():
            for name, tensor in tensors.items():
                if name.startswith("backbone."):
                    trainable[name].copy_(tensor)

    def log_entry(self) -> dict[str, Json]:
        """Return the method's entries for a line of `metrics.jsonl`.

        An entry `cost` maps names to fractions of the training time, for the progress line.
        """
        return {}

    @classmethod
    def figures(cls, records: Sequence[dict[str, Json]]) -> Iterator[tuple[str, Figure]]:
        """Yield the method's figures for the report, with names, from lines of `metrics.jsonl`."""
        yield from ()

    def explanations(self) -> Mapping[str, tuple[str, ...]]:
        """Return the names of the explanation maps, each with the names of its E layers."""
        return {}

    def explain(self, name: str, state: StateT) -> Tensor:
        """Compute an explanation map, in eval mode.

        Args:
            name: A key of `explanations`.
            state: The state after the explained block (`Backbone.walk` with `stop`).

        Returns:
            (B, E, h, w) fractions of the E layers per token, summing to 1 over E.
        """
        raise NotImplementedError

"""Method: the trainable modules around a frozen backbone, and hooks into training."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Generic, Self

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from rsseg_cli.contract.backbone import Backbone
from rsseg_cli.contract.features import Features, QueryShape, S, State
from rsseg_cli.contract.step import Step
from rsseg_cli.contract.token_grid import Grid
from rsseg_cli.errors import RssegError
from rsseg_cli.settings import Json, Strict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

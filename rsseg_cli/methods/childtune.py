"""ChildTuning: a child network of the backbone trains (Xu et al., EMNLP 2021).

Form D selects elements once, by the squared gradients of batches. Form F draws a new mask in every
step and multiplies gradients by mask / ratio, so that all elements change in the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import Parameter

from rsseg_cli.contract import Backbone, Method, Step
from rsseg_cli.methods._fisher.domain_fisher import SelectionScores
from rsseg_cli.methods._fisher.posterior import mean_squares
from rsseg_cli.methods._fisher.sparse import Sparse
from rsseg_cli.settings import Json


class ChildTune(Sparse):
    """Trains a fixed or a random subset of the backbone's weights."""

    class Config(Sparse.Config):
        """Settings of ChildTuning; see the preset for their sources."""

        form: Literal["D", "F"] = "D"
        ratio: float = Field(0.05, gt=0, le=1)
        """Form D: fraction of the backbone's parameters that trains. Form F: probability of an
        element in each step."""
        samples: int = Field(2048, ge=1)
        """Form D: samples of the estimate."""
        batch: int = Field(4, ge=1)
        """Form D: samples per gradient."""
        max_norm: float | None = Field(1.0, gt=0)
        """Form D: each weight tensor's gradient is clipped to this norm before it is squared."""

    config: Config

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone, [config.ratio if config.form == "D" else 0.0])

    def score(self, step: Step, centre: Sequence[Tensor]) -> SelectionScores:
        """Average the squared gradients of batches."""
        config, weights = self.config, self.candidates.weights
        probes = step.probes(-(-config.samples // config.batch), samples=config.batch)
        squares = mean_squares(probes, weights, step.average, max_norm=config.max_norm)
        return SelectionScores(squares)

    # --- form F ------------------------------------------------------------------------------
    def warmup(self, total: int) -> int:
        """Return the number of warm-up steps; form F has none by default."""
        if self.config.form == "F" and self.config.warmup is None:
            return 0
        return super().warmup(total)

    def no_grad_clip(self) -> list[Parameter]:
        """Return the candidates of form D; all gradients of form F have an effect."""
        return super().no_grad_clip() if self.config.form == "D" else []

    def before_step(self, step: Step) -> None:
        """Train nothing in the warm-up; then form F trains all candidates."""
        if self.config.form == "D":
            super().before_step(step)
        else:
            self.candidates.requires_grad_(step.index >= self.warmup(step.total))

    @torch.no_grad()
    def before_update(self, step: Step) -> None:
        """Multiply form F's gradients by this step's mask / ratio.

        The mask depends on seed, step and weight only: it is the same in every process and after a
        restart, and need not be stored.
        """
        if self.config.form == "D":
            super().before_update(step)
            return
        weights, ratio = self.candidates.weights, self.config.ratio
        generator = torch.Generator(weights[0].device).manual_seed(int(self.draws) + step.index)
        for weight in weights:
            mask = torch.empty_like(weight).bernoulli_(ratio, generator=generator)
            if weight.grad is not None:
                weight.grad.mul_(mask).div_(ratio)

    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        """Return the selected elements; in form F all weights, which have all changed."""
        if self.config.form == "F":
            return Method.adapter_state(self, backbone)
        return super().adapter_state(backbone)

    def trained_shapes(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the selected elements; form F selects none."""
        return super().trained_shapes(tensors) if self.config.form == "D" else {}

    def load_adapter_state(self, tensors: dict[str, Tensor], backbone: Backbone) -> None:
        """Load the result of `adapter_state`."""
        if self.config.form == "F":
            Method.load_adapter_state(self, tensors, backbone)
        else:
            super().load_adapter_state(tensors, backbone)

    def log_entry(self) -> dict[str, Json]:
        """Return the tuned fraction; in form F the expected number of elements per mask."""
        if self.config.form == "D":
            return super().log_entry()
        tuned = round(self.config.ratio * self.candidates.size)
        return {"tuned": tuned, "tuned_share": tuned / self.candidates.total}

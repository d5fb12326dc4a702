"""ChildTuning: a child network of the backbone trains (Xu et al., EMNLP 2021).

Form D chooses the elements once, by the squared gradients of batches; the others stay. Form F
draws a new mask in every step and multiplies gradients by mask / ratio; in time everything moves.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """Trains a part of the backbone's weights, fixed or random."""

    class Config(Sparse.Config):
        """Settings of ChildTuning; see the preset for their sources."""

        form: Literal["D", "F"] = "D"
        ratio: float = Field(0.05, gt=0, le=1)
        """D: share of the backbone's parameters that trains. F: chance of an element, per step."""
        samples: int = Field(2048, ge=1)
        """Form D: samples that are measured."""
        batch: int = Field(4, ge=1)
        """Form D: samples whose mean loss gives one gradient."""
        max_norm: float | None = Field(1.0, gt=0)
        """Form D: every weight tensor's gradient is clipped to this norm before it is squared."""

    config: Config

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone, shares=[config.ratio] if config.form == "D" else [0.0])

    def score(self, step: Step, centre: Sequence[Tensor]) -> SelectionScores:
        """Average the squared gradients of batches."""
        config = self.config
        probes = step.probes(-(-config.samples // config.batch), samples=config.batch)
        weights, limit = self.candidates.weights, config.max_norm
        return SelectionScores(mean_squares(probes, weights, step.average, max_norm=limit))

    # --- form F ------------------------------------------------------------------------------
    def warmup(self, total: int) -> int:
        """Return the steps of the warm-up; form F has none unless told."""
        if self.config.form == "F" and self.config.warmup is None:
            return 0
        return super().warmup(total)

    def no_grad_clip(self) -> list[Parameter]:
        """Leave form F's gradients, which all count, in the shared clip."""
        return super().no_grad_clip() if self.config.form == "D" else []

    def before_step(self, step: Step) -> None:
        """Warm up; form F then lets everything train."""
        if self.config.form == "D":
            super().before_step(step)
        else:
            self.candidates.open(step.index >= self.warmup(step.total))

    @torch.no_grad()
    def before_update(self, step: Step) -> None:
        """Multiply form F's gradients by this step's mask / ratio.

        The mask is a function of seed, step and weight: the same in every process and after a
        restart, and never kept.
        """
        if self.config.form == "D":
            super().before_update(step)
            return
        weights, ratio = self.candidates.weights, self.config.ratio
        seed = int(self.draws) + step.index
        generator = torch.Generator(weights[0].device).manual_seed(seed)
        for weight in weights:
            mask = torch.empty_like(weight).bernoulli_(ratio, generator=generator)
            if weight.grad is not None:
                weight.grad.mul_(mask).div_(ratio)

    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        """Return the chosen elements, or all weights: form F moves everything."""
        return (
            super().adapter_state(backbone)
            if self.config.form == "D"
            else Method.adapter_state(self, backbone)
        )

    def load_adapter_state(self, tensors: dict[str, Tensor], backbone: Backbone) -> None:
        """Load the result of `adapter_state`."""
        if self.config.form == "D":
            super().load_adapter_state(tensors, backbone)
        else:
            Method.load_adapter_state(self, tensors, backbone)

    def log_entry(self) -> dict[str, Json]:
        """Return how much trains; in form F, how much a mask lets through."""
        if self.config.form == "D":
            return super().log_entry()
        tuned = round(self.config.ratio * self.candidates.size)
        return {"tuned": tuned, "tuned_share": tuned / self.candidates.total}

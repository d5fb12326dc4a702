"""FISH mask: the elements with the highest Fisher information train (Sung et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from rsseg_cli.contract import Backbone, Step
from rsseg_cli.methods._fisher.domain_fisher import SelectionScores
from rsseg_cli.methods._fisher.posterior import mean_squares
from rsseg_cli.methods._fisher.sparse import Sparse


class Fish(Sparse):
    """Scores an element by its squared gradient, summed over single samples and their labels."""

    class Config(Sparse.Config):
        """Settings of FISH; see the preset for their sources."""

        ratio: float = Field(0.05, gt=0, le=1)
        """Share of the backbone's parameters that trains."""
        samples: int = Field(1024, ge=1)
        """Samples that are measured, one by one."""

    config: Config

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone, shares=[config.ratio])

    def score(self, step: Step, centre: Sequence[Tensor]) -> SelectionScores:
        """Average the squared gradients; a mean ranks like the sum."""
        probes = step.probes(self.config.samples)
        return SelectionScores(mean_squares(probes, self.candidates.weights, step.average))

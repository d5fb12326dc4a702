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
    """Scores an element by its squared gradient, averaged over single labelled samples."""

    class Config(Sparse.Config):
        """Settings of FISH; see the preset for their sources."""

        ratio: float = Field(0.05, gt=0, le=1)
        """Fraction of the backbone's parameters that trains."""
        samples: int = Field(1024, ge=1)
        """Samples of the estimate, each with its own gradient."""

    config: Config

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone, fractions=[config.ratio])

    def score(self, step: Step, centre: Sequence[Tensor]) -> SelectionScores:
        """Average the squared gradients, which ranks as their sum does."""
        probes = step.probes(self.config.samples)
        return SelectionScores(mean_squares(probes, self.candidates.weights, step.average))

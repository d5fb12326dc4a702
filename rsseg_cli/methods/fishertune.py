"""FisherTune: the domain-sensitive weights of the backbone train (CVPR 2025, arXiv 2503.17940).

After a warm-up of the head, the gradients of labelled samples are compared with those of the same
samples under shifted feature statistics, which simulate an unseen domain. Their squares at samples
of a Gaussian posterior over the weights estimate the Fisher information F of every element and its
change. Elements are ranked by F plus this change; the best 1 % train at first, 5 % at the end. The
estimation runs before the first tuning step and updates nothing, so that a restarted run can
repeat it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from rsseg_cli import distributed
from rsseg_cli.contract import Backbone, State, Step
from rsseg_cli.errors import RssegError
from rsseg_cli.methods._fisher import domain_fisher, ranking
from rsseg_cli.methods._fisher.feature_shift import (
    EMBEDDING,
    FeatureHook,
    FeatureShift,
    FeatureStatistics,
)
from rsseg_cli.methods._fisher.posterior import (
    GaussianPosterior,
    PosteriorKind,
    Prior,
    mean_squares,
)
from rsseg_cli.methods._fisher.sparse import Sparse
from rsseg_cli.number_format import counted

PERIODS = 100
"""Equal periods of the tuning phase, each with its fraction of elements that train."""
MAX_LOSS_RATIO = 1.1
"""Largest loss at samples of the prior, over the loss at the pretrained weights."""
PRINTED_EPSILON = 1e-8
"""Damping of equation 5."""

Schedule = Literal["grow", "constant"]
Score = Literal["domain_fisher", "fisher", "domain", "random"]


class FisherTune(Sparse):
    """Ranks elements by domain-related Fisher information and trains a growing fraction of them."""

    class Config(Sparse.Config):
        """Settings of FisherTune; see the preset for their sources."""

        score: Score = "domain_fisher"
        """Fisher information, its change between domains, their sum, or random numbers."""
        estimation: int = Field(500, ge=1)
        """Pairs of a clean and a shifted pass."""
        samples: int = Field(2, ge=1)
        """Images per pass; the gradient is that of their mean loss."""
        statistics: int = Field(200, ge=1)
        """Passes that measure the variation of feature statistics between images."""
        gauge: int = Field(50, ge=1)
        """Passes that measure the scale of the Fisher information."""
        posterior: PosteriorKind = "natural"
        """Estimation of the precisions; `none` skips the variational step."""
        tau: float = Field(0.1, gt=0)
        """Standard deviation of the prior over that of each weight tensor."""
        kappa: float = Field(1.0, gt=0)
        """gamma / tau^2, over the median Fisher information."""
        damping: Literal["kappa", "epsilon"] = "kappa"
        """Term added to the denominator of the change: kappa, or equation 5's 1e-8."""
        domain_weight: float = Field(1.0, ge=0)
        """Factor of the change."""
        amplitude: tuple[float, float] = (0.5, 2.0)
        """Smallest and largest factor of the shift of a pass."""
        sites: tuple[int, ...] | None = None
        """Blocks whose outputs are shifted, -1 for the embedding; null: the embedding, and the
        blocks at the start, a quarter and half of the depth."""
        schedule: Schedule = "grow"
        """`grow` from `share_min` to `share_max`, or `constant` at `share_max`."""
        share_min: float = Field(0.01, gt=0, le=1)
        """Fraction of the backbone's parameters that trains at first."""
        share_max: float = Field(0.05, gt=0, le=1)
        """Fraction of the backbone's parameters that trains at the end."""
        steepness: float = Field(1.0, gt=0)
        """Curvature k of the growth: at first it is e^k times as fast as at the end."""

        @field_validator("amplitude")
        @classmethod
        def _ascending(cls, amplitude: tuple[float, float]) -> tuple[float, float]:
            if not 0 <= amplitude[0] <= amplitude[1]:
                raise ValueError("must be 0 <= smallest <= largest")
            return amplitude

        @model_validator(mode="after")
        def _ordered(self) -> FisherTune.Config:
            if self.share_min > self.share_max:
                raise ValueError(
                    f"share_min {self.share_min} is larger than share_max {self.share_max}"
                )
            return self

    config: Config

    def __init__(self, config: Config, backbone: Backbone) -> None:
        limits = config.share_min, config.share_max
        super().__init__(config, backbone, schedule(config.schedule, *limits, config.steepness))
        self.sites = _sites(config, backbone.depth)
        self._hook: FeatureHook | None = None

    # --- forward -----------------------------------------------------------------------------
    def before_block(self, index: int, tokens: Tensor, state: State) -> Tensor:
        """Apply the feature hook to the embedding."""
        return self._apply_hook(EMBEDDING, tokens, state) if index == 0 else tokens

    def after_block(self, index: int, tokens: Tensor, state: State) -> Tensor:
        """Apply the feature hook to the output of a block."""
        return self._apply_hook(index, tokens, state)

    def _apply_hook(self, site: int, tokens: Tensor, state: State) -> Tensor:
        if self._hook is None or site not in self.sites:
            return tokens
        return self._hook(site, tokens, state.grid)

    # --- estimation --------------------------------------------------------------------------
    def before_step(self, step: Step) -> None:
        """Check that the estimation fits the run, then proceed as all sparse methods."""
        config, processes = self.config, distributed.world_size()
        if config.score != "random" and config.estimation > step.total:
            raise RssegError(
                f"an estimation of {counted(config.estimation, 'iteration')} is longer than the "
                f"run of {counted(step.total, 'step')}",
                where="method.estimation",
                fix=f"fewer, such as {max(1, step.total // 10):,}, or more training.steps",
            )
        if config.statistics < processes:
            raise RssegError(
                f"{processes} processes cannot share {counted(config.statistics, 'probe')}",
                where="method.statistics",
                fix=f"{processes} or more",
            )
        super().before_step(step)

    def score(self, step: Step, centre: Sequence[Tensor]) -> domain_fisher.SelectionScores:
        """Score all candidates at samples around `centre`, and restore them to it."""
        config, weights = self.config, self.candidates.weights
        if config.score == "random":
            generator = torch.Generator().manual_seed(int(self.draws))
            return domain_fisher.SelectionScores(
                [torch.rand(w.shape, generator=generator).to(w.device) for w in weights]
            )
        shift = None if config.score == "fisher" else self._measure_shifts(step)
        prior = self._build_prior(step, centre)
        clean, shifted = self._estimate(step, centre, prior, shift)
        if shifted is None:
            return domain_fisher.SelectionScores(clean)
        damping = prior.kappa if config.damping == "kappa" else PRINTED_EPSILON
        for fisher, other in zip(clean, shifted, strict=True):
            domain_fisher.change(fisher, other, damping)
        if config.score == "domain":
            return domain_fisher.SelectionScores(shifted, shifted)
        split = self.candidates.split
        domain_fisher.combine(split(clean), split(shifted), config.domain_weight)
        return domain_fisher.SelectionScores(clean, shifted)

    def _measure_shifts(self, step: Step) -> FeatureShift:
        """Measure the variation of feature statistics; only the head gets gradients."""
        statistics = self._hook = FeatureStatistics()
        self.candidates.requires_grad_(False)
        for probe in step.probes(self.config.statistics, samples=self.config.samples):
            probe.backward()
        self._hook = None
        self.candidates.requires_grad_(True)
        return FeatureShift(statistics.spreads(step.average), amplitude=self.config.amplitude)

    def _build_prior(self, step: Step, centre: Sequence[Tensor]) -> Prior:
        """Scale the prior's width to the weights and its strength to the Fisher information."""
        config = self.config
        probes = step.probes(config.gauge, samples=config.samples)
        squares = mean_squares(probes, self.candidates.weights, step.average)
        median = ranking.median_above_zero(self.candidates.split(squares))
        if not 0 < median < math.inf:
            raise RssegError(
                f"the gradients of the candidates are zero or not finite at step {step.index:,}",
                where="method",
                fix="labels that the head can learn from, or training.precision=fp32",
            )
        # The minimum keeps the width of a tensor of zeros above 0.
        deviations = torch.stack([tensor.var() for tensor in centre]).sqrt().clamp(min=1e-8)
        prior = Prior(tuple((deviations * config.tau).tolist()), config.kappa * median)
        return prior if config.posterior == "none" else self._shrink(step, centre, prior)

    def _shrink(self, step: Step, centre: Sequence[Tensor], prior: Prior) -> Prior:
        """Halve the prior's width until its samples hardly raise the loss."""
        at_centre = self._loss(step, centre, None)
        for _ in range(10):
            if self._loss(step, centre, prior) < MAX_LOSS_RATIO * at_centre:
                break
            prior = Prior(tuple(tau / 2 for tau in prior.tau), prior.kappa)
        return prior

    def _loss(self, step: Step, centre: Sequence[Tensor], prior: Prior | None) -> float:
        """Average a few losses, at the pretrained weights or at samples of the prior."""
        weights = self.candidates.detached()
        self.candidates.requires_grad_(False)
        total, seed = 0.0, int(self.draws)
        probes = step.probes(4, samples=self.config.samples)
        for number, probe in zip(distributed.round_robin(), probes, strict=False):
            if prior:
                prior.sample(weights, centre, seed + number)
            total += probe.backward()
        _restore(weights, centre)
        self.candidates.requires_grad_(True)
        return step.average(torch.tensor(total, device=centre[0].device)).item()

    def _estimate(
        self, step: Step, centre: Sequence[Tensor], prior: Prior, shift: FeatureShift | None
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """Estimate the Fisher information of clean and of shifted passes.

        Both passes of a pair use the same samples, crops, matching points and posterior noise, and
        are weighted by the shift: without a shift they are equal. Each process has its own
        posterior; they are merged at the end.

        Returns:
            F, and F under shifts if any.
        """
        config, weights, device = self.config, self.candidates.detached(), centre[0].device
        noise = config.posterior == "natural"
        clean = GaussianPosterior(prior, centre, noise=noise)
        shifted = GaussianPosterior(prior, centre, noise=noise) if shift else None
        seed = int(self.draws)
        probes = step.probes(config.estimation, samples=config.samples)
        for number, probe in zip(distributed.round_robin(), probes, strict=False):
            weight = 1.0
            if shift and shifted:
                shifted.sample(weights, centre, seed + number)
                shift.start(seed + config.estimation + number, device)
                self._hook = shift
                probe.backward()
                self._hook = None
                weight = shift.weight()
                shifted.update(self._pop_gradients(), weight)
            clean.sample(weights, centre, seed + number)
            probe.backward()
            clean.update(self._pop_gradients(), weight)
        _restore(weights, centre)
        clean.merge(step.average)
        if shifted:
            shifted.merge(step.average)
        return clean.squares, shifted.squares if shifted else None

    def _pop_gradients(self) -> list[Tensor | None]:
        """Return the gradients and clear them before the next sample is drawn."""
        gradients = [weight.grad for weight in self.candidates.weights]
        for weight in self.candidates.weights:
            weight.grad = None
        return gradients


def schedule(kind: Schedule, low: float, high: float, steepness: float) -> list[float]:
    """Return the fraction that trains in each period of the tuning phase.

    `grow` increases from `low` to `high`, following the text of section 3.3.3:
    low + (high - low) (1 - exp(-k t)) / (1 - exp(-k)). Equation 16 as printed would decrease.
    """
    if kind == "constant":
        return [high] * PERIODS
    times = [period / (PERIODS - 1) for period in range(PERIODS)]
    full = -math.expm1(-steepness)
    return [low + (high - low) * -math.expm1(-steepness * time) / full for time in times]


def _sites(config: FisherTune.Config, depth: int) -> frozenset[int]:
    if config.sites is None:
        return frozenset({EMBEDDING, 0, max(0, depth // 4 - 1), max(0, depth // 2 - 1)})
    wrong = [site for site in config.sites if not EMBEDDING <= site < depth]
    if wrong or not config.sites:
        raise RssegError(
            f"features cannot be shifted after {wrong or 'no'} blocks: there are {depth}",
            where="method.sites",
            fix=f"numbers in 0..{depth - 1}, -1 for the embedding, or null",
        )
    return frozenset(config.sites)


def _restore(weights: Sequence[Tensor], centre: Sequence[Tensor]) -> None:
    for weight, pretrained in zip(weights, centre, strict=True):
        weight.copy_(pretrained)

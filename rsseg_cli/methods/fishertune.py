"""FisherTune: the weights that matter across domains train (CVPR 2025, arXiv 2503.17940).

After a warm-up of the head, gradients of labelled samples are compared with those of the same
samples under shifted feature statistics, which stand for an unseen domain. Their squares at
samples of a Gaussian posterior over the weights give the Fisher information F of every element
and how much it changes, and F plus that change ranks all elements. Then the best train, 1 % at
first and 5 % in the end. The estimation takes place before the first step of tuning and updates
nothing, so that a restart either finds its result or repeats it.
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
from rsseg_cli.methods._fisher.posterior import Natural, PosteriorKind, Prior, mean_squares, sample
from rsseg_cli.methods._fisher.sparse import Sparse
from rsseg_cli.number_format import counted

PARTS = 100
"""Equal parts of the tuning phase, each with its share of admitted elements."""
CALM = 1.1
"""Largest loss at a sample of the prior, over the loss at the pretrained weights."""
PRINTED_EPSILON = 1e-8
"""Denominator of equation 5."""

Schedule = Literal["grow", "constant"]
Score = Literal["domain_fisher", "fisher", "domain", "random"]


class FisherTune(Sparse):
    """Ranks elements by domain-related Fisher information and admits them little by little."""

    class Config(Sparse.Config):
        """Settings of FisherTune; see the preset for their sources."""

        score: Score = "domain_fisher"
        """Fisher information, its change between domains, their sum, or chance."""
        estimation: int = Field(500, ge=1)
        """Pairs of a clean and a shifted pass."""
        samples: int = Field(2, ge=1)
        """Images of a pass: the mean of so many losses gives one gradient."""
        statistics: int = Field(200, ge=1)
        """Passes that measure how feature statistics vary between images."""
        gauge: int = Field(50, ge=1)
        """Passes that find the scale of the Fisher information."""
        posterior: PosteriorKind = "natural"
        """How precisions are estimated; `none` leaves the variational step out."""
        tau: float = Field(0.1, gt=0)
        """Width of the prior, as a fraction of each weight tensor's standard deviation."""
        kappa: float = Field(1.0, gt=0)
        """gamma / tau^2, over the median Fisher information."""
        damping: Literal["kappa", "epsilon"] = "kappa"
        """What stands beside the Fisher information under the fraction: kappa, or eq. 5's 1e-8."""
        domain_weight: float = Field(1.0, ge=0)
        """Factor of the change."""
        amplitude: tuple[float, float] = (0.5, 2.0)
        """Least and largest factor of a pass' shift."""
        sites: tuple[int, ...] | None = None
        """Where features are shifted: after these blocks, -1 being the embedding; null: there and
        after the first block, a quarter and half of them."""
        schedule: Schedule = "grow"
        """Whether the fraction that trains grows from `share_min` or is `share_max` throughout."""
        share_min: float = Field(0.01, gt=0, le=1)
        """Share of the backbone's parameters that trains at first."""
        share_max: float = Field(0.05, gt=0, le=1)
        """Share of the backbone's parameters that trains in the end."""
        steepness: float = Field(1.0, gt=0)
        """How much faster the share grows at first than in the end, as an exponent of e."""

        @field_validator("amplitude")
        @classmethod
        def _rising(cls, amplitude: tuple[float, float]) -> tuple[float, float]:
            if not 0 <= amplitude[0] <= amplitude[1]:
                raise ValueError("wanted: 0 <= least <= largest")
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
        shares = schedule(config.schedule, config.share_min, config.share_max, config.steepness)
        super().__init__(config, backbone, shares)
        self.sites = _sites(config, backbone.depth)
        self._feature: FeatureHook | None = None

    # --- forward -----------------------------------------------------------------------------
    def before_block(self, index: int, tokens: Tensor, state: State) -> Tensor:
        """Apply the feature hook to the embedding."""
        return self._see(EMBEDDING, tokens, state) if index == 0 else tokens

    def after_block(self, index: int, tokens: Tensor, state: State) -> Tensor:
        """Apply the feature hook to the output of a block."""
        return self._see(index, tokens, state)

    def _see(self, site: int, tokens: Tensor, state: State) -> Tensor:
        if self._feature is None or site not in self.sites:
            return tokens
        return self._feature(site, tokens, state.grid)

    # --- estimation --------------------------------------------------------------------------
    def before_step(self, step: Step) -> None:
        """Refuse an estimation that is longer than the run, then go on as all sparse methods."""
        config = self.config
        if config.score != "random" and config.estimation > step.total:
            raise RssegError(
                f"an estimation of {counted(config.estimation, 'iteration')} is longer than the "
                f"run of {counted(step.total, 'step')}",
                where="method.estimation",
                fix=f"fewer, such as {max(1, step.total // 10):,}, or more training.steps",
            )
        if config.statistics < distributed.world_size():
            raise RssegError(
                f"{distributed.world_size()} processes cannot share "
                f"{counted(config.statistics, 'probe')}",
                where="method.statistics",
                fix=f"{distributed.world_size()} or more",
            )
        super().before_step(step)

    def score(self, step: Step, centre: Sequence[Tensor]) -> domain_fisher.SelectionScores:
        """Score all candidates; the weights are moved meanwhile and put back to `centre`."""
        config, weights = self.config, self.candidates.weights
        if config.score == "random":
            generator = torch.Generator().manual_seed(int(self.draws))
            return domain_fisher.SelectionScores(
                [torch.rand(w.shape, generator=generator).to(w.device) for w in weights]
            )
        shift = None if config.score == "fisher" else self._measure_shifts(step)
        prior = self._find_prior(step, centre)
        clean, shifted = self._estimate(step, centre, prior, shift)
        if shifted is None:
            return domain_fisher.SelectionScores(clean)
        damping = prior.kappa if config.damping == "kappa" else PRINTED_EPSILON
        for fisher, other in zip(clean, shifted, strict=True):
            domain_fisher.change(fisher, other, damping)
        if config.score == "domain":
            return domain_fisher.SelectionScores(shifted, shifted)
        split = self.candidates.split
        domain_fisher.combine(list(split(clean)), list(split(shifted)), config.domain_weight)
        return domain_fisher.SelectionScores(clean, shifted)

    def _measure_shifts(self, step: Step) -> FeatureShift:
        """Measure how statistics vary; only the head's gradients are computed."""
        watch = FeatureStatistics()
        self.candidates.open(False)
        self._feature = watch
        for probe in step.probes(self.config.statistics, samples=self.config.samples):
            probe.backward()
        self._feature = None
        self.candidates.open(True)
        return FeatureShift(watch.spreads(step.average), amplitude=self.config.amplitude)

    def _find_prior(self, step: Step, centre: Sequence[Tensor]) -> Prior:
        """Scale the prior: its width to the weights, its strength to the Fisher information."""
        config, weights = self.config, self.candidates.weights
        probes = step.probes(config.gauge, samples=config.samples)
        squares = mean_squares(probes, weights, step.average)
        median = ranking.median_above_zero(list(self.candidates.split(squares)))
        if not 0 < median < math.inf:
            raise RssegError(
                f"the gradients of the candidates are zero or not finite at step {step.index:,}",
                where="method",
                fix="labels that the head can learn from, or training.precision=fp32",
            )
        kappa, tau = config.kappa * median, self._widths(centre)
        if config.posterior == "none":
            return Prior(tau, kappa)
        return self._calm(step, centre, Prior(tau, kappa))

    def _widths(self, centre: Sequence[Tensor]) -> tuple[float, ...]:
        variances = torch.stack([tensor.var() for tensor in centre])
        # A tensor of zeros gets a width that is nothing, but can be divided by.
        return tuple((variances.sqrt().clamp(min=1e-8) * self.config.tau).tolist())

    def _calm(self, step: Step, centre: Sequence[Tensor], prior: Prior) -> Prior:
        """Halve the prior's width until its samples hardly raise the loss."""
        before = self._loss(step, centre, None)
        for _ in range(10):
            if self._loss(step, centre, prior) < CALM * before:
                break
            prior = Prior(tuple(tau / 2 for tau in prior.tau), prior.kappa)
        return prior

    def _loss(self, step: Step, centre: Sequence[Tensor], prior: Prior | None) -> float:
        """Average a few losses, at the pretrained weights or at samples of the prior."""
        weights = [weight.detach() for weight in self.candidates.weights]
        self.candidates.open(False)
        total, seed = 0.0, int(self.draws)
        probes = step.probes(4, samples=self.config.samples)
        for number, probe in zip(distributed.round_robin(), probes, strict=False):
            if prior:
                sample(prior, weights, centre, seed + number)
            total += probe.backward()
        _restore(weights, centre)
        self.candidates.open(True)
        return step.average(torch.tensor(total, device=centre[0].device)).item()

    def _estimate(
        self, step: Step, centre: Sequence[Tensor], prior: Prior, shift: FeatureShift | None
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """Estimate the Fisher information of clean and of shifted passes.

        Both passes of a pair use the same samples, crops, matching points and posterior noise,
        and count alike, by the weight of their shift: without a shift nothing differs. Each of
        several processes follows a posterior of its own, and these are merged in the end.

        Returns:
            F, and F under shifts if any.
        """
        config, weights = self.config, [weight.detach() for weight in self.candidates.weights]

        noise = config.posterior == "natural"
        clean = Natural(prior, centre, noise=noise)
        shifted = Natural(prior, centre, noise=noise) if shift else None
        seed = int(self.draws)
        probes = step.probes(config.estimation, samples=config.samples)
        for number, probe in zip(distributed.round_robin(), probes, strict=False):
            counted = 1.0
            if shift and shifted:
                shifted.sample(weights, centre, seed + number)
                shift.start(seed + config.estimation + number, centre[0].device)
                self._feature = shift
                probe.backward()
                self._feature = None
                counted = shift.weight()
                shifted.update(self._take_gradients(), counted)
            clean.sample(weights, centre, seed + number)
            probe.backward()
            clean.update(self._take_gradients(), counted)
        _restore(weights, centre)
        clean.merge(step.average)
        if shifted:
            shifted.merge(step.average)
        return clean.fisher(), shifted.fisher() if shifted else None

    def _take_gradients(self) -> list[Tensor | None]:
        """Return the gradients and clear them before the next sample is drawn."""
        found = [weight.grad for weight in self.candidates.weights]
        for weight in self.candidates.weights:
            weight.grad = None
        return found


def schedule(kind: Schedule, low: float, high: float, steepness: float) -> list[float]:
    """Return the fraction that trains in each part of the tuning phase.

    `grow` begins with `low` and ends with `high`, as the text of section 3.3.3 says:
    low + (high - low) (1 - exp(-k t)) / (1 - exp(-k)). Equation 16 as printed would fall.
    """
    if kind == "constant":
        return [high] * PARTS
    times = [part / (PARTS - 1) for part in range(PARTS)]
    full = -math.expm1(-steepness)
    return [low + (high - low) * -math.expm1(-steepness * time) / full for time in times]


def _sites(config: FisherTune.Config, depth: int) -> frozenset[int]:
    """Return where features are shifted.

    Raises:
        RssegError: There is no such block.
    """
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

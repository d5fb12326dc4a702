"""Fisher information from gradients, at the weights or at samples of a Gaussian posterior.

With q = N(theta, 1/precision) and the prior N(theta, tau^2) the objective of FisherTune's
equations 10 to 13 is, per element, E_q loss + gamma/2 (1/(tau^2 precision) + ln precision). The
mean theta stays at the pretrained weight. Its stationary point is equation 14,
precision = F/gamma + tau^-2 with the Fisher information F.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rsseg_cli.contract import Probe

Average = Callable[[Tensor], Tensor]
PosteriorKind = Literal["natural", "none"]


@dataclass(frozen=True)
class Prior:
    """Gaussian prior over the weights."""

    tau: tuple[float, ...]
    """Standard deviation per weight tensor, in units of the weights."""
    kappa: float
    """gamma / tau^2, the same for all tensors: the Fisher information (loss^2 per weight^2) below
    which the prior dominates the posterior."""

    def gamma(self, index: int) -> float:
        """Return the weight of the divergence for a tensor."""
        return self.kappa * self.tau[index] ** 2

    def sample(self, weights: Sequence[Tensor], centre: Sequence[Tensor], seed: int) -> None:
        """Write a sample around `centre` into the weights."""
        for index, noise in enumerate(_noise(weights, seed)):
            torch.add(centre[index], noise, alpha=self.tau[index], out=weights[index])


class MeanSquares:
    """Empirical Fisher information: running means of squared gradients, in float32.

    Args:
        like: Tensors with the shapes and the device of the gradients.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self.squares = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in like]
        self.total = 0.0

    def update(self, gradients: Sequence[Tensor | None], weight: float = 1.0) -> None:
        """Include squared gradients in the weighted mean."""
        self.total += weight
        step = weight / self.total
        for mean, gradient in zip(self.squares, gradients, strict=True):
            mean.mul_(1 - step)
            if gradient is not None:
                gradient = gradient.float()
                mean.addcmul_(gradient, gradient, value=step)

    def merge(self, average: Average) -> None:
        """Average over processes, each weighted by the total weight of its gradients."""
        device = self.squares[0].device
        total = average(torch.tensor(self.total, dtype=torch.float32, device=device))
        for mean in self.squares:
            mean.copy_(average(mean * self.total) / total)


class GaussianPosterior(MeanSquares):
    """Posterior by natural-gradient steps: its running mean of squared gradients is F.

    F is stored and not the precision, in which the prior would swamp small values. This takes one
    float per element; the precision is never below the prior's.
    """

    def __init__(self, prior: Prior, like: Sequence[Tensor], *, noise: bool = True) -> None:
        super().__init__(like)
        self.prior, self.noise = prior, noise

    def precision(self, index: int) -> Tensor:
        """Return the precision of the elements of a tensor."""
        return self.squares[index] / self.prior.gamma(index) + self.prior.tau[index] ** -2

    def sample(self, weights: Sequence[Tensor], centre: Sequence[Tensor], seed: int) -> None:
        """Write a sample around `centre` into the weights; without noise do nothing."""
        if not self.noise:
            return
        for index, noise in enumerate(_noise(weights, seed)):
            # tau / sqrt(1 + F/kappa) is precision^-1/2 with one operation fewer.
            deviation = (self.squares[index] / self.prior.kappa).add_(1).rsqrt_()
            noise.mul_(deviation).mul_(self.prior.tau[index])
            torch.add(centre[index], noise, out=weights[index])


def mean_squares(
    probes: Iterable[Probe],
    weights: Sequence[Tensor],
    average: Average,
    *,
    max_norm: float | None = None,
) -> list[Tensor]:
    """Average the squared gradients of probes; `max_norm` clips each weight's gradient first."""
    means = MeanSquares(weights)
    for probe in probes:
        probe.backward()
        if max_norm is not None:
            for weight in weights:
                torch.nn.utils.clip_grad_norm_(weight, max_norm)
        means.update([weight.grad for weight in weights])
    means.merge(average)
    return means.squares


def _noise(like: Sequence[Tensor], seed: int) -> Iterator[Tensor]:
    """Draw standard normal float32 numbers shaped like each tensor."""
    device = like[0].device
    generator = torch.Generator(device).manual_seed(seed)
    for tensor in like:
        yield torch.randn(tensor.shape, generator=generator, device=device)

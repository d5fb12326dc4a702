"""What FisherTune, ChildTuning-D and FISH share: single elements of the backbone's weights train.

The run has a warm-up, in which only the head trains; one selection at its end; and tuning. AdamW
steps every candidate with full gradients and moments, then the elements that are not admitted are
put back bit for bit. That equals an AdamW whose update and decay are multiplied by the mask, and
an element that is admitted late finds its moments settled: no oversized first step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import Parameter

from rsseg_cli.contract import Backbone, Method, Role, State, Step
from rsseg_cli.errors import RssegError
from rsseg_cli.methods._fisher import plots, ranking
from rsseg_cli.methods._fisher.candidates import Candidates
from rsseg_cli.methods._fisher.domain_fisher import SelectionScores
from rsseg_cli.number_format import counted
from rsseg_cli.settings import Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Sparse(Method[State]):
    """Tunes the elements with the highest scores; a subclass implements `score`.

    Args:
        shares: Share of the backbone's parameters that is admitted during each equal part of
            the tuning phase, at most 255 parts.
    """

    class Config(Method.Config):
        """Settings of all sparse methods."""

        roles: tuple[Role, ...] = Field(("q", "k", "v", "fc1", "fc2"), min_length=1)
        """Which weights of a block elements are chosen from."""
        warmup: int | None = Field(None, ge=0)
        """Steps in which only the head trains; null: a twentieth of the run."""
        clip: float | None = Field(None, gt=0)
        """Largest norm of the gradient of the admitted elements; null means no clipping."""

        @field_validator("roles")
        @classmethod
        def _once(cls, roles: tuple[Role, ...]) -> tuple[Role, ...]:
            if len(set(roles)) < len(roles):
                raise ValueError("each role can be named once")
            return roles

    index: Tensor
    """(n,) int32: places of the chosen elements in their parts; by part, then level, then place."""
    counts: Tensor
    """(parts, levels): how many elements of a part each level admits."""
    sensitivity: Tensor
    """(parts,): mean score of a part over the mean score of all."""
    domain_share: Tensor
    """Fraction of the chosen elements' scores that is the domain's change; NaN without one."""
    draws: Tensor
    """Seed of all that is random here, itself drawn when the method is made."""

    def __init__(self, config: Config, backbone: Backbone, shares: Sequence[float]) -> None:
        super().__init__(config, backbone)
        self.config = config
        self.candidates = Candidates(backbone, config.roles)
        sizes = [max(1, round(share * self.candidates.total)) for share in shares]
        self.sizes = sorted(set(sizes))
        """Number of elements that each level admits."""
        self.timetable = [self.sizes.index(size) for size in sizes]
        """Level of each part of the tuning phase."""
        self._require(self.sizes[-1])
        self.register_buffer("index", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(len(self.candidates), len(self.sizes)).int())
        self.register_buffer("sensitivity", torch.zeros(len(self.candidates)))
        self.register_buffer("domain_share", torch.full((), torch.nan))
        self.register_buffer("draws", torch.randint(2**62, ()))
        # Of the level at hand, shaped like the weights: what is admitted, and what is put back.
        self._masks: list[Tensor] = []
        self._held: list[Tensor] = []
        self._level = -1
        self._told = -1
        self._selection_s = 0.0

    def _require(self, count: int) -> None:
        if count > self.candidates.size:
            raise RssegError(
                f"{count:,} elements cannot be chosen from {self.candidates.size:,} "
                f"({count / self.candidates.total:.2%} of the backbone's "
                f"{self.candidates.total:,} parameters)",
                where="method",
                fix="a smaller share, or more roles (method.roles)",
            )

    def score(self, step: Step, centre: Sequence[Tensor]) -> SelectionScores:
        """Score all candidates; weights that it moves it puts back to `centre`."""
        raise NotImplementedError

    def trainable_parameters(self, backbone: Backbone) -> Iterator[tuple[str, Parameter]]:
        """Return the weights that elements are chosen from."""
        pairs = zip(self.candidates.names, self.candidates.weights, strict=True)
        for name, weight in pairs:
            yield f"backbone.{name}", weight

    def no_grad_clip(self) -> list[Parameter]:
        """Keep the candidates out of the shared clip: most of their gradient changes nothing."""
        return self.candidates.weights

    # --- training ----------------------------------------------------------------------------
    def warmup(self, total: int) -> int:
        """Return the steps of the warm-up in a run of `total`.

        Raises:
            RssegError: Nothing would be left for tuning.
        """
        wanted = self.config.warmup
        steps = total // 20 if wanted is None else wanted
        if steps >= total:
            raise RssegError(
                f"a warm-up of {counted(steps, 'step')} leaves nothing of a run of {total:,}",
                where="method.warmup",
                fix=f"fewer steps, or null for {total // 20:,}",
            )
        return steps

    def before_step(self, step: Step) -> None:
        """Warm up; then select once; then admit elements as time goes."""
        start = self.warmup(step.total)
        self.candidates.open(step.index >= start)
        if step.index < start:
            return
        if not len(self.index):
            self._select(step)
        parts, done = len(self.timetable), step.index - start + 1
        self._admit(self.timetable[-(-done * parts // (step.total - start)) - 1])

    def _select(self, step: Step) -> None:
        started = time.perf_counter()
        weights = [weight.detach() for weight in self.candidates.weights]
        self._held = [weight.clone() for weight in weights]
        scores = self.score(step, self._held)
        sums = [part.sum(dtype=torch.float64) for part in self.candidates.split(scores.values)]
        totals = torch.stack(sums).cpu()
        if not bool(torch.isfinite(totals).all()):
            raise RssegError(
                f"the gradients that select elements are not finite numbers at step {step.index:,}",
                where="method",
                fix="a lower learning rate (--set optimizer.lr) or training.precision=bf16; "
                "--resume goes on from the last good state",
            )
        levels = [torch.empty_like(weight, dtype=torch.uint8) for weight in weights]
        split = self.candidates.split
        ranking.levels(list(split(scores.values)), self.sizes, split(levels))
        self._choose(levels)
        sizes = torch.tensor(self.candidates.sizes(), dtype=torch.float64)
        overall = totals.sum() / sizes.sum()
        self.sensitivity.copy_(totals / sizes / overall.clamp(min=torch.finfo().tiny))
        if scores.domain is not None:
            self.domain_share.copy_(self._chosen(scores.domain) / self._chosen(scores.values))
        self._told = -1
        self._selection_s = time.perf_counter() - started

    def _chosen(self, tensors: Sequence[Tensor]) -> Tensor:
        """Sum the chosen elements of tensors shaped like the weights."""
        return self._gather(tensors).sum(dtype=torch.float64)

    def _choose(self, levels: Sequence[Tensor]) -> None:
        """Write the levels of all elements as `index` and `counts`."""
        places: list[Tensor] = []
        for row, part in enumerate(self.candidates.split(levels)):
            found = (part != ranking.NEVER).nonzero()[:, 0]
            level, order = part[found].sort(stable=True)
            places.append(found[order].int())
            self.counts[row] = level.bincount(minlength=len(self.sizes))
        self.index = torch.cat(places)

    def masks(self, level: int) -> list[Tensor]:
        """Mark the elements of each weight that a level admits."""
        masks = [torch.zeros_like(w, dtype=torch.bool) for w in self.candidates.weights]
        counts = self.counts[:, : level + 1].sum(1).tolist()
        parts = zip(self._places(), counts, self.candidates.split(masks), strict=True)
        for places, count, mask in parts:
            mask[places[:count]] = True
        return masks

    def _places(self) -> tuple[Tensor, ...]:
        """Split `index` by part."""
        return torch.split(self.index, self.counts.sum(1).tolist())

    def _gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the chosen elements of tensors shaped like the weights, in `index` order."""
        pairs = zip(self._places(), self.candidates.split(tensors), strict=True)
        return torch.cat([part[places] for places, part in pairs])

    def _admit(self, level: int) -> None:
        """Set the mask of a level; the other elements keep their present values."""
        if level == self._level:
            return
        # Elements that were never admitted are as they were at first; those that leave again
        # (schedules may shrink) stay where they have got to.
        weights = [weight.detach() for weight in self.candidates.weights]
        self._held = self._held or [torch.empty_like(weight) for weight in weights]
        for held, weight in zip(self._held, weights, strict=True):
            held.copy_(weight)
        self._masks, self._level = self.masks(level), level

    @torch.no_grad()
    def before_update(self, step: Step) -> None:
        """Clip by the norm of the admitted elements' gradients."""
        clip = self.config.clip
        if clip is None or self._level < 0:
            return
        pairs = zip(self.candidates.weights, self._masks, strict=True)
        found = [(weight.grad, mask) for weight, mask in pairs if weight.grad is not None]
        squares = [(gradient.square() * mask).sum() for gradient, mask in found]
        factor = (clip / (torch.stack(squares).sum().sqrt() + 1e-6)).clamp(max=1)
        for gradient, _ in found:
            gradient.mul_(factor)

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Put back the elements that are not admitted."""
        if self._level < 0:
            return
        for weight, mask, held in zip(
            self.candidates.weights, self._masks, self._held, strict=True
        ):
            torch.where(mask, weight, held, out=weight)

    # --- files and pictures --------------------------------------------------------------------
    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        """Return which elements are chosen and their values: eight bytes an element."""
        state = {f"method.{name}": tensor for name, tensor in self.state_dict().items()}
        weights = [weight.detach() for weight in self.candidates.weights]
        return state | {"method.value": self._gather(weights)}

    def load_adapter_state(self, tensors: dict[str, Tensor], backbone: Backbone) -> None:
        """Restore the choice, and put the values into the backbone."""
        rest = dict(tensors)
        value = rest.pop("method.value")
        self.index = rest["method.index"].to(self.index.device)  # its length was not known
        super().load_adapter_state(rest, backbone)
        self._masks, self._held, self._level, self._told = [], [], -1, -1
        weights = [weight.detach() for weight in self.candidates.weights]
        values = torch.split(value.to(weights[0]), self.counts.sum(1).tolist())
        parts = zip(self._places(), values, self.candidates.split(weights), strict=True)
        for places, values_here, part in parts:
            part[places] = values_here

    def log_entry(self) -> dict[str, Json]:
        """Return how much trains; what the selection found, once; the parts when they change."""
        if self._level < 0:
            return {"phase": "warmup", "tuned": 0, "tuned_share": 0.0}
        admitted = self.sizes[self._level]
        line: dict[str, Json] = {
            "phase": "tuning",
            "tuned": admitted,
            "tuned_share": admitted / self.candidates.total,
        }
        if self._told != self._level:
            line["tuned_by_part"] = self._table(self._shares())
        if self._told < 0:
            domain: Any = float(self.domain_share)
            line |= {
                "sensitivity": self._table(self.sensitivity),
                "domain_share": domain if domain == domain else None,
                "selection_s": self._selection_s,
            }
        self._told = self._level
        return line

    def _shares(self) -> Tensor:
        """Share of each part's elements that is admitted (parts,)."""
        admitted = self.counts[:, : self._level + 1].sum(1).cpu()
        return admitted / torch.tensor(self.candidates.sizes())

    def _table(self, values: Tensor) -> dict[str, Json]:
        """Return values of slices (S,) as one number per block for each role."""
        rows = zip(self.candidates.parts, self.candidates.sizes(), values.tolist(), strict=True)
        return plots.table(rows)

    @classmethod
    def figures(cls, records: Sequence[dict[str, Json]]) -> Iterator[tuple[str, Figure]]:
        """Draw the sensitivity of every block and role, and how much of each was tuned."""
        yield from plots.draw(records)

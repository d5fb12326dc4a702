"""Base of FisherTune, ChildTuning-D and FISH, which train single elements of weights.

A run has a warm-up, in which only the head trains, one selection of elements, and the tuning
phase. AdamW updates every candidate with full gradients and moments; then the elements outside the
mask are restored bit for bit. This equals an AdamW whose update and decay are multiplied by the
mask. The moments of an element that is admitted late have settled, so that its first step is not
too large.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
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
    """Trains the elements with the highest scores; a subclass implements `score`.

    Args:
        fractions: Fraction of the backbone's parameters that trains in each of at most 255 equal
            periods of the tuning phase.
    """

    class Config(Method.Config):
        """Settings of all sparse methods."""

        roles: tuple[Role, ...] = Field(("q", "k", "v", "fc1", "fc2"), min_length=1)
        """Weights of a block that elements are selected from."""
        warmup: int | None = Field(None, ge=0)
        """Steps in which only the head trains; null: a twentieth of the run."""
        clip: float | None = Field(None, gt=0)
        """Largest gradient norm of the elements that train; null: no clipping."""

        @field_validator("roles")
        @classmethod
        def _once(cls, roles: tuple[Role, ...]) -> tuple[Role, ...]:
            if len(set(roles)) < len(roles):
                raise ValueError("each role can be named once")
            return roles

    index: Tensor
    """(n,) int32: indices of the selected elements in their slices; by slice, level, index."""
    counts: Tensor
    """(slices, levels): number of elements of a slice that each level adds."""
    sensitivity: Tensor
    """(slices,): mean score of a slice over the mean score of all."""
    domain_share: Tensor
    """Fraction of the selected elements' scores due to the domain change; NaN if unused."""
    draws: Tensor
    """Seed of the method's own random numbers, drawn at construction."""

    def __init__(self, config: Config, backbone: Backbone, fractions: Sequence[float]) -> None:
        super().__init__(config, backbone)
        self.config = config
        self.candidates = Candidates(backbone, config.roles)
        sizes = [max(1, round(fraction * self.candidates.total)) for fraction in fractions]
        self.sizes = sorted(set(sizes))
        """Number of elements that train at each level."""
        self.timetable = [self.sizes.index(size) for size in sizes]
        """Level of each period of the tuning phase."""
        if self.sizes[-1] > self.candidates.size:
            raise RssegError(
                f"{self.sizes[-1]:,} elements cannot be chosen from {self.candidates.size:,} "
                f"({self.sizes[-1] / self.candidates.total:.2%} of the backbone's "
                f"{self.candidates.total:,} parameters)",
                where="method",
                fix="a smaller fraction, or more roles (method.roles)",
            )
        slices = len(self.candidates.slices)
        self.register_buffer("index", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(slices, len(self.sizes)).int())
        self.register_buffer("sensitivity", torch.zeros(slices))
        self.register_buffer("domain_share", torch.full((), torch.nan))
        self.register_buffer("draws", torch.randint(2**62, ()))
        # Shaped like the weights: elements that train at the current level, values of the others.
        self._masks: list[Tensor] = []
        self._fixed: list[Tensor] = []
        self._level = -1
        self._logged_level = -1
        self._selection_s = 0.0

    def score(self, step: Step, centre: Sequence[Tensor]) -> SelectionScores:
        """Score all candidates; if their weights were changed, restore them to `centre`."""
        raise NotImplementedError

    def trainable_parameters(self, backbone: Backbone) -> Iterator[tuple[str, Parameter]]:
        """Return the candidate weights."""
        for name, weight in zip(self.candidates.names, self.candidates.weights, strict=True):
            yield f"backbone.{name}", weight

    def no_grad_clip(self) -> list[Parameter]:
        """Return the candidates: most of their gradient has no effect."""
        return self.candidates.weights

    # --- training ----------------------------------------------------------------------------
    def warmup(self, total: int) -> int:
        """Return the number of warm-up steps in a run of `total`.

        Raises:
            RssegError: No step is left for tuning.
        """
        steps = total // 20 if self.config.warmup is None else self.config.warmup
        if steps >= total:
            raise RssegError(
                f"a warm-up of {counted(steps, 'step')} leaves nothing of a run of {total:,}",
                where="method.warmup",
                fix=f"fewer steps, or null for {total // 20:,}",
            )
        return steps

    def before_step(self, step: Step) -> None:
        """Train nothing in the warm-up, select once, then set the level of the period."""
        start = self.warmup(step.total)
        self.candidates.requires_grad_(step.index >= start)
        if step.index < start:
            return
        if not len(self.index):
            self._select(step)
        periods, done = len(self.timetable), step.index - start + 1
        self._set_level(self.timetable[-(-done * periods // (step.total - start)) - 1])

    def _select(self, step: Step) -> None:
        started = time.perf_counter()
        weights, split = self.candidates.detached(), self.candidates.split
        self._fixed = [weight.clone() for weight in weights]
        scores = self.score(step, self._fixed)
        values = split(scores.values)
        totals = torch.stack([vector.sum(dtype=torch.float64) for vector in values]).cpu()
        if not bool(torch.isfinite(totals).all()):
            raise RssegError(
                f"the gradients that select elements are not finite numbers at step {step.index:,}",
                where="method",
                fix="a lower learning rate (--set optimizer.lr) or training.precision=bf16; "
                "--resume goes on from the last good state",
            )
        levels = [torch.empty_like(weight, dtype=torch.uint8) for weight in weights]
        ranking.levels(values, self.sizes, split(levels))
        self._store(levels)
        sizes = torch.tensor(self.candidates.sizes(), dtype=torch.float64)
        overall = totals.sum() / sizes.sum()
        self.sensitivity.copy_(totals / sizes / overall.clamp(min=torch.finfo().tiny))
        if scores.domain is not None:
            domain, total = (
                self._selected(tensors).sum(dtype=torch.float64)
                for tensors in (scores.domain, scores.values)
            )
            self.domain_share.copy_(domain / total)
        self._logged_level = -1
        self._selection_s = time.perf_counter() - started

    def _store(self, levels: Sequence[Tensor]) -> None:
        """Store the levels of all elements as `index` and `counts`."""
        indices: list[Tensor] = []
        for row, level_of in enumerate(self.candidates.split(levels)):
            index = (level_of != ranking.NEVER).nonzero()[:, 0]
            level, order = level_of[index].sort(stable=True)
            indices.append(index[order].int())
            self.counts[row] = level.bincount(minlength=len(self.sizes))
        self.index = torch.cat(indices)

    def masks(self, level: int) -> list[Tensor]:
        """Return boolean masks of the elements that train at a level, one per weight."""
        masks = [torch.zeros_like(w, dtype=torch.bool) for w in self.candidates.weights]
        counts = self.counts[:, : level + 1].sum(1).tolist()
        vectors = self.candidates.split(masks)
        for index, count, mask in zip(self._indices(), counts, vectors, strict=True):
            mask[index[:count]] = True
        return masks

    def _indices(self) -> tuple[Tensor, ...]:
        """Split `index` by slice."""
        return torch.split(self.index, self.counts.sum(1).tolist())

    def _selected(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the selected elements of tensors shaped like the weights, in `index` order."""
        pairs = zip(self._indices(), self.candidates.split(tensors), strict=True)
        return torch.cat([vector[index] for index, vector in pairs])

    def _set_level(self, level: int) -> None:
        """Set the mask of a level; the other elements keep their present values."""
        if level == self._level:
            return
        # Elements that never trained have their initial values; those that no longer train
        # (schedules may shrink) keep what they have learned.
        self._fixed = self._fixed or [torch.empty_like(w) for w in self.candidates.detached()]
        for fixed, weight in zip(self._fixed, self.candidates.detached(), strict=True):
            fixed.copy_(weight)
        self._masks, self._level = self.masks(level), level

    @torch.no_grad()
    def before_update(self, step: Step) -> None:
        """Clip by the gradient norm of the elements that train."""
        clip = self.config.clip
        if clip is None or self._level < 0:
            return
        pairs = zip(self.candidates.weights, self._masks, strict=True)
        gradients = [(weight.grad, mask) for weight, mask in pairs if weight.grad is not None]
        squares = [(gradient.square() * mask).sum() for gradient, mask in gradients]
        factor = (clip / (torch.stack(squares).sum().sqrt() + 1e-6)).clamp(max=1)
        for gradient, _ in gradients:
            gradient.mul_(factor)

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Restore the elements that do not train."""
        if self._level >= 0:
            rows = zip(self.candidates.weights, self._masks, self._fixed, strict=True)
            for weight, mask, fixed in rows:
                torch.where(mask, weight, fixed, out=weight)

    # --- files and figures ---------------------------------------------------------------------
    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        """Return the indices and values of the selected elements: eight bytes per element."""
        state = {f"method.{name}": tensor for name, tensor in self.state_dict().items()}
        return state | {"method.value": self._selected(self.candidates.detached())}

    def trained_shapes(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the indices and values: one of each per selected element."""
        selected = int(tensors.get("method.counts", self.counts).sum())
        return {"method.index": (selected,), "method.value": (selected,)}

    def load_adapter_state(self, tensors: dict[str, Tensor], backbone: Backbone) -> None:
        """Restore the selection, and write the values into the backbone."""
        rest = dict(tensors)
        value = rest.pop("method.value")
        self.index = rest["method.index"].to(self.index.device)  # the length must match
        super().load_adapter_state(rest, backbone)
        self._masks, self._fixed, self._level, self._logged_level = [], [], -1, -1
        weights = self.candidates.detached()
        values = torch.split(value.to(weights[0]), self.counts.sum(1).tolist())
        vectors = self.candidates.split(weights)
        for index, new, vector in zip(self._indices(), values, vectors, strict=True):
            vector[index] = new

    def log_entry(self) -> dict[str, Json]:
        """Return the tuned fraction; the selection once; the table by role after a change."""
        if self._level < 0:
            return {"phase": "warmup", "tuned": 0, "tuned_share": 0.0}
        size = self.sizes[self._level]
        line: dict[str, Json] = {
            "phase": "tuning",
            "tuned": size,
            "tuned_share": size / self.candidates.total,
        }
        if self._logged_level != self._level:
            tuned = self.counts[:, : self._level + 1].sum(1).cpu()
            line["tuned_by_part"] = self._table(tuned / torch.tensor(self.candidates.sizes()))
        if self._logged_level < 0:
            domain: Any = float(self.domain_share)
            line |= {
                "sensitivity": self._table(self.sensitivity),
                "domain_share": domain if domain == domain else None,
                "selection_s": self._selection_s,
            }
        self._logged_level = self._level
        return line

    def _table(self, values: Tensor) -> dict[str, Json]:
        """Return values of slices (S,) as one number per block for each role."""
        slices, sizes = self.candidates.slices, self.candidates.sizes()
        return plots.table(zip(slices, sizes, values.tolist(), strict=True))

    @classmethod
    def figures(cls, records: Sequence[dict[str, Json]]) -> Iterator[tuple[str, Figure]]:
        """Draw the sensitivity and the tuned fraction of every block and role."""
        yield from plots.draw(records)

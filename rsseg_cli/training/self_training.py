"""Self-training: an EMA teacher labels the target, the student learns from both domains.

Half of a batch is labelled. Half the classes of each labelled tile are pasted onto a tile of the
target with its pseudo-labels, and the radiometry of the mixture is changed. The student learns
from it, weighted by the teacher's confidence (DACS, Tranheden et al. 2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from rsseg_cli import distributed
from rsseg_cli.classes import IGNORE
from rsseg_cli.data.tiles.augment import Augment, Generators, draw, tile_generators
from rsseg_cli.data.tiles.domain_batches import DomainBatch
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.settings import Json, Strict
from rsseg_cli.training.classmix import class_mask, paste
from rsseg_cli.training.ema_teacher import EMATeacher
from rsseg_cli.training.pseudo_labels import PseudoLabels, by_confidence, by_entropy

Weight = Literal["image", "const", "pixel"]


class SelfTraining:
    """Objective on labelled tiles of the source and pseudo-labelled tiles of the target.

    Args:
        settings: See `Config`.
        model: The student, on its device, as it starts.
        augment: Settings of the augmentation of labelled tiles.
        tile: Side of a tile in pixels.
        steps: Number of steps of the run.
    """

    class Config(Strict):
        """Settings; the sources are DACS (arXiv 2007.08702) and Earth-Adapter (2504.06220)."""

        warmup_fraction: float = Field(0.2, ge=0, lt=1)
        """Fraction of the steps before the first pseudo-label (Earth-Adapter: 4k of 20k); 0 when
        the run starts from a fitted model."""
        decay: float = Field(0.99, ge=0, lt=1)
        """Largest fraction of the old value that an update of the teacher keeps (DACS)."""
        threshold: float = Field(0.9, ge=0, le=1)
        """Probability from which a pseudo-label is sure (DACS .968, on another score)."""
        weight: Weight = "image"
        """Weight of tiles of the target: their fraction of sure pixels (DACS), always the same
        (Earth-Adapter), or the same but with sure pixels only."""
        target_weight: float = Field(0.5, ge=0)
        """Factor of the target's loss (Earth-Adapter)."""
        jitter: float = Field(0.2, ge=0, le=1)
        """Largest change of the mixture's gain and offset, overall and per band (DAFormer)."""
        jitter_chance: float = Field(0.8, ge=0, le=1)
        """Fraction of mixtures whose radiometry is changed (DACS)."""
        blur: float = Field(0.0, ge=0, le=1)
        """Fraction of mixtures that are blurred (Earth-Adapter none; DACS .5). Seen from above,
        classes often differ by texture of a few pixels, which a blur removes."""
        keep_fraction: float = Field(0.5, gt=0, le=1)
        """Without a source: fraction of the pixels of each class, those of lowest entropy, that
        are learnt from."""

    def __init__(
        self, settings: Config, model: Segmenter, augment: Augment.Config, *, tile: int, steps: int
    ) -> None:
        self.settings = settings
        self.teacher = EMATeacher(model, settings.decay)
        self.start = round(settings.warmup_fraction * steps)
        """Step of the first pseudo-label."""
        self.done = 0
        """Steps done."""
        self.classes = model.head.classes
        still = dict.fromkeys(("gain", "offset", "band_gain", "band_offset", "noise", "blur"), 0.0)
        in_place = still | {"scale": (1.0, 1.0), "flip": False, "rot90": False}
        changed = dict.fromkeys(("gain", "offset", "band_gain", "band_offset"), settings.jitter)

        def changing(update: dict[str, Any]) -> Augment:
            return Augment(augment.model_copy(update=update), tile=tile)

        self.strong, self.weak = changing({}), changing(still)
        self.jitter = changing(in_place | changed)
        self.blur = changing(in_place | {"blur": settings.blur})
        self._statistics = PseudoLabelStatistics(self.classes)

    @property
    def started(self) -> bool:
        """Whether there are pseudo-labels by now."""
        return self.done >= self.start

    def __call__(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms of both domains, named `source ...` and `target ...`."""
        assert isinstance(batch, DomainBatch)
        image, count = model.standardise(batch.image), batch.sources
        generators = tile_generators(batch.seeds, image.device)
        parts: list[tuple[Tensor, Tensor]] = []
        groups: list[tuple[str, int, Tensor | float]] = []
        if count:
            parts.append(self.strong(image[:count], batch.label[:count], generators[:count]))
            groups.append(("source", count, 1.0))
        if count < len(image) and self.started:
            of_target = generators[count:]
            weak, label = self.weak(image[count:], batch.label[count:], of_target)
            labels = self._pseudo_labels(weak, label != IGNORE, labelled=bool(count))
            parts.append(self._mixture(parts[0] if count else None, weak, labels, of_target))
            # Alone, there is nothing to weigh the target against.
            groups += self._weigh(labels) if count else [("target", len(weak), 1.0)]
            self._statistics.add(labels)
        return self._losses(model, parts, groups)

    def worst_case(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms with pseudo-labels, even before the first ones are due."""
        done, self.done = self.done, self.start
        try:
            with self.unrecorded():
                return self(model, batch)
        finally:
            self.done = done

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Keep the pseudo-labels of this block out of the statistics."""
        before, self._statistics = self._statistics, PseudoLabelStatistics(self.classes)
        try:
            yield
        finally:
            self._statistics = before

    def _pseudo_labels(self, image: Tensor, valid: Tensor, *, labelled: bool) -> PseudoLabels:
        """Label weak views (B, C, H, W) of the target by the teacher."""
        probabilities = self.teacher.probabilities(image)
        if labelled:
            return by_confidence(probabilities, valid, self.settings.threshold)
        return by_entropy(probabilities, valid, self.settings.keep_fraction)

    def _mixture(
        self,
        source: tuple[Tensor, Tensor] | None,
        weak: Tensor,
        labels: PseudoLabels,
        generators: Generators,
    ) -> tuple[Tensor, Tensor]:
        """Paste source onto target, if there is any, and change the radiometry of the result."""
        label = labels.label if self.settings.weight != "pixel" else labels.sure_only()
        if source is None:
            mixed = weak, labels.sure_only()
        else:
            donors = torch.arange(len(weak), device=weak.device) % len(source[0])
            donor = source[0][donors], source[1][donors]
            mixed = paste(class_mask(donor[1], self.classes, generators), donor, (weak, label))
        return self._strong_view(mixed[0], generators), mixed[1]

    def _strong_view(self, image: Tensor, generators: Generators) -> Tensor:
        """Change the radiometry of some tiles, and blur some."""
        nothing = image.new_zeros(len(image), *image.shape[-2:])
        chosen = draw((1, 1, 1), generators) < self.settings.jitter_chance
        changed, _ = self.jitter(image, nothing, generators)
        return self.blur(torch.where(chosen, changed, image), nothing, generators)[0]

    def _weigh(self, labels: PseudoLabels) -> list[tuple[str, int, Tensor | float]]:
        """Group the target's tiles by the weight of their loss: (name, tiles, weight)."""
        count, weight = len(labels.label), self.settings.target_weight
        if self.settings.weight != "image":
            return [("target", count, weight)]
        # Tiles of different weight pass the head one by one.
        return [("target", 1, weight * q / count) for q in labels.coverage]

    def _losses(
        self,
        model: Segmenter,
        parts: list[tuple[Tensor, Tensor]],
        groups: list[tuple[str, int, Tensor | float]],
    ) -> dict[str, Tensor]:
        """Pass all tiles through the backbone at once, and weigh the head's terms by group."""
        image = torch.cat([part[0] for part in parts])
        label = torch.cat([part[1].long() for part in parts])
        alone = [isinstance(weight, Tensor) for _, _, weight in groups]  # weighed by themselves
        terms: dict[str, Tensor] = model(
            image, label, groups=[count for _, count, _ in groups], local_groups=sum(alone)
        )
        losses: dict[str, Tensor] = {}
        for name, term in terms.items():
            if not term.ndim:  # the method's own
                losses[name] = term
                continue
            for (domain, _, weight), value in zip(groups, term, strict=True):
                key = f"{domain} {name}"
                losses[key] = losses.get(key, 0.0) + weight * value
        return losses

    def after_step(self, model: Segmenter, step: int) -> None:
        """Update the teacher."""
        self.teacher.update(step)
        self.done = step + 1

    def record(self) -> dict[str, Json]:
        """Return the statistics of the pseudo-labels since the last line."""
        statistics = self._statistics.read()
        self._statistics = PseudoLabelStatistics(self.classes)
        return {} if statistics is None else {"teacher": statistics}

    def state(self) -> dict[str, Tensor]:
        """Return the teacher and the number of steps done."""
        return self.teacher.state() | {"done": torch.tensor(self.done)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load what `state` returned."""
        self.teacher.restore(state)
        self.done = int(state["done"])


class PseudoLabelStatistics:
    """Sums over pseudo-labels, on the device until they are read."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.sums: Tensor | None = None

    @torch.no_grad()
    def add(self, labels: PseudoLabels) -> None:
        """Add the pixels of a batch: valid and sure ones, their confidence, and every class."""
        counts = torch.stack([labels.valid.sum(), labels.sure.sum()]).double()
        confidence = labels.confidence.masked_fill(~labels.valid, 0.0).sum()[None].double()
        shape = (IGNORE + 1,)
        ones = torch.ones_like(labels.label, dtype=torch.float64).flatten()
        shares = ones.new_zeros(shape).scatter_add_(0, labels.label.flatten(), ones)
        line = torch.cat((counts, confidence, shares[: self.classes]))
        self.sums = line if self.sums is None else self.sums + line

    def read(self) -> dict[str, Json] | None:
        """Return fractions of all valid pixels, over all processes; None without any batch."""
        if self.sums is None:
            return None
        pixels, sure, confidence, *classes = distributed.reduce_sum(self.sums).tolist()
        pixels = max(1.0, pixels)
        return {
            "coverage": sure / pixels,
            "confidence": confidence / pixels,
            "shares": [count / pixels for count in classes],
        }

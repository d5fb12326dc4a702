"""Self-training on a target domain with an EMA teacher (DACS, Tranheden et al. 2021).

Half of a batch is labelled (source). Half the classes of each labelled tile are pasted onto a tile
of the target, which the teacher has labelled, and the colours of this mixture are jittered. The
student's loss on it is weighted by the teacher's confidence.
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
from rsseg_cli.training.objectives import Objective
from rsseg_cli.training.pseudo_labels import PseudoLabels, by_confidence, by_entropy

Weight = Literal["image", "const", "pixel"]


class SelfTraining(Objective):
    """Objective on labelled tiles of the source and pseudo-labelled tiles of the target.

    Args:
        model: The student in its initial state, on its device.
        augment: Settings of the augmentation of labelled tiles.
    """

    class Config(Strict):
        """Settings, after DACS (arXiv 2007.08702) and Earth-Adapter (arXiv 2504.06220)."""

        warmup_fraction: float = Field(0.2, ge=0, lt=1)
        """Fraction of the steps before the first pseudo-label (Earth-Adapter: 4k of 20k); 0 when
        the run starts from a fitted model."""
        decay: float = Field(0.99, ge=0, lt=1)
        """Maximum decay of the teacher's EMA (DACS)."""
        threshold: float = Field(0.9, ge=0, le=1)
        """Probability at or above which a pseudo-label is sure (DACS .968, on another score)."""
        weight: Weight = "image"
        """Weight of a tile of the target: `image` is its fraction of sure pixels (DACS), `const`
        is constant (Earth-Adapter), `pixel` is constant, but ignores pixels that are not sure."""
        target_weight: float = Field(0.5, ge=0)
        """Factor of the target's loss (Earth-Adapter)."""
        jitter: float = Field(0.2, ge=0, le=1)
        """Maximum change of the mixture's gain and offset, overall and per band (DAFormer)."""
        jitter_chance: float = Field(0.8, ge=0, le=1)
        """Fraction of mixtures that are jittered (DACS)."""
        blur: float = Field(0.0, ge=0, le=1)
        """Fraction of mixtures that are blurred (Earth-Adapter none; DACS .5). A blur removes the
        fine texture by which classes in aerial images often differ."""
        keep_fraction: float = Field(0.5, gt=0, le=1)
        """Without a source: fraction of the pixels of each class, those of lowest entropy, that
        are sure."""

    def __init__(
        self, settings: Config, model: Segmenter, augment: Augment.Config, *, tile: int, steps: int
    ) -> None:
        self.settings = settings
        self.teacher = EMATeacher(model, settings.decay)
        self.start = round(settings.warmup_fraction * steps)
        """Number of steps before the first pseudo-label."""
        self.done = 0
        """Number of finished steps."""
        self.classes = model.head.classes
        geometric = dict.fromkeys(
            ("gain", "offset", "band_gain", "band_offset", "noise", "blur"), 0.0
        )
        nothing = geometric | {"scale": (1.0, 1.0), "flip": False, "rot90": False}
        jitter = dict.fromkeys(("gain", "offset", "band_gain", "band_offset"), settings.jitter)

        def augment_with(update: dict[str, Any]) -> Augment:
            return Augment(augment.model_copy(update=update), tile=tile)

        self.strong, self.weak = augment_with({}), augment_with(geometric)
        self.jitter = augment_with(nothing | jitter)
        self.blur = augment_with(nothing | {"blur": settings.blur})
        self._statistics = PseudoLabelStatistics(self.classes)

    @property
    def started(self) -> bool:
        """Whether the warmup before the first pseudo-label is over."""
        return self.done >= self.start

    def __call__(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms of both domains, named `source ...` and `target ...`."""
        assert isinstance(batch, DomainBatch)
        image, count = model.standardise(batch.image), batch.sources
        generators = tile_generators(batch.seeds, image.device)
        tiles: list[tuple[Tensor, Tensor]] = []
        groups: list[tuple[str, int, Tensor | float]] = []
        if count:
            tiles.append(self.strong(image[:count], batch.label[:count], generators[:count]))
            groups.append(("source", count, 1.0))
        if count < len(image) and self.started:
            of_target = generators[count:]
            weak, label = self.weak(image[count:], batch.label[count:], of_target)
            labels = self._pseudo_labels(weak, label != IGNORE, labelled=bool(count))
            tiles.append(self._mixture(tiles[0] if count else None, weak, labels, of_target))
            # Without a source the target's weight has no meaning.
            groups += self._weigh(labels) if count else [("target", len(weak), 1.0)]
            self._statistics.add(labels)
        return self._losses(model, tiles, groups)

    def worst_case(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms with pseudo-labels, even during the warmup."""
        done, self.done = self.done, self.start
        try:
            with self.unrecorded():
                return self(model, batch)
        finally:
            self.done = done

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Exclude the pseudo-labels of this block from the statistics."""
        before, self._statistics = self._statistics, PseudoLabelStatistics(self.classes)
        try:
            yield
        finally:
            self._statistics = before

    def _pseudo_labels(self, image: Tensor, valid: Tensor, *, labelled: bool) -> PseudoLabels:
        """Predict pseudo-labels of weakly augmented tiles (B, C, H, W) of the target."""
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
        """Paste source tiles, if there are any, onto the target, and jitter the mixtures."""
        label = labels.label if self.settings.weight != "pixel" else labels.sure_only()
        if source is None:
            mixed = weak, labels.sure_only()
        else:
            donors = torch.arange(len(weak), device=weak.device) % len(source[0])
            donor = source[0][donors], source[1][donors]
            mixed = paste(class_mask(donor[1], self.classes, generators), donor, (weak, label))
        return self._strong_view(mixed[0], generators), mixed[1]

    def _strong_view(self, image: Tensor, generators: Generators) -> Tensor:
        """Jitter some tiles, and blur some."""
        no_label = image.new_zeros(len(image), *image.shape[-2:])
        chosen = draw((1, 1, 1), generators) < self.settings.jitter_chance
        jittered, _ = self.jitter(image, no_label, generators)
        return self.blur(torch.where(chosen, jittered, image), no_label, generators)[0]

    def _weigh(self, labels: PseudoLabels) -> list[tuple[str, int, Tensor | float]]:
        """Group the target's tiles by weight of their loss: (domain, number of tiles, weight)."""
        count, weight = len(labels.label), self.settings.target_weight
        if self.settings.weight != "image":
            return [("target", count, weight)]
        # The loss of each tile is computed separately.
        return [("target", 1, weight * q / count) for q in labels.coverage]

    def _losses(
        self,
        model: Segmenter,
        tiles: list[tuple[Tensor, Tensor]],
        groups: list[tuple[str, int, Tensor | float]],
    ) -> dict[str, Tensor]:
        """Run the model on all tiles, and weight the head's loss terms by group."""
        image = torch.cat([image for image, _ in tiles])
        label = torch.cat([label.long() for _, label in tiles])
        single_tiles = sum(isinstance(weight, Tensor) for _, _, weight in groups)
        terms: dict[str, Tensor] = model(
            image, label, groups=[count for _, count, _ in groups], local_groups=single_tiles
        )
        losses: dict[str, Tensor] = {}
        for name, term in terms.items():
            if not term.ndim:  # of the method, not of the head
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
        """Return the statistics of the pseudo-labels since the last call."""
        statistics = self._statistics.read()
        self._statistics = PseudoLabelStatistics(self.classes)
        return {} if statistics is None else {"teacher": statistics}

    def state(self) -> dict[str, Tensor]:
        """Return the teacher and the number of finished steps."""
        return self.teacher.state() | {"done": torch.tensor(self.done)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load the teacher and the number of finished steps."""
        self.teacher.restore(state)
        self.done = int(state["done"])


class PseudoLabelStatistics:
    """Sums over pseudo-labels, kept on the device until `read`."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.sums: Tensor | None = None

    @torch.no_grad()
    def add(self, labels: PseudoLabels) -> None:
        """Add the pseudo-labels of a batch."""
        counts = torch.stack([labels.valid.sum(), labels.sure.sum()]).double()
        confidence = labels.confidence.masked_fill(~labels.valid, 0.0).sum()[None].double()
        ones = torch.ones_like(labels.label, dtype=torch.float64).flatten()
        pixels = ones.new_zeros(IGNORE + 1).scatter_add_(0, labels.label.flatten(), ones)
        sums = torch.cat((counts, confidence, pixels[: self.classes]))
        self.sums = sums if self.sums is None else self.sums + sums

    def read(self) -> dict[str, Json] | None:
        """Return fractions of the valid pixels of all processes; None without any batch."""
        if self.sums is None:
            return None
        pixels, sure, confidence, *classes = distributed.reduce_sum(self.sums).tolist()
        pixels = max(1.0, pixels)
        return {
            "coverage": sure / pixels,
            "confidence": confidence / pixels,
            "shares": [count / pixels for count in classes],
        }

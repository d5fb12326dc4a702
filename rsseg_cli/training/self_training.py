"""Self-training: a slow teacher labels the target, the student learns from both domains.

Half of a batch is labelled. Half the classes of each labelled tile are pasted onto a tile of the
target that the teacher has labelled, the mixture is changed in its radiometry, and the student
learns from it as far as the teacher is sure (DACS, Tranheden et al. 2021).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from rsseg_cli import distributed
from rsseg_cli.classes import IGNORE
from rsseg_cli.data.tiles.augment import Augment
from rsseg_cli.data.tiles.domain_batches import DomainBatch
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.settings import Json, Strict
from rsseg_cli.share import own
from rsseg_cli.training.mixing import paste, pasted
from rsseg_cli.training.objectives import generator_like
from rsseg_cli.training.pseudo_labels import PseudoLabels, by_confidence, by_entropy
from rsseg_cli.training.teacher import Teacher

Weight = Literal["image", "const", "pixel"]


class SelfTraining:
    """Learns from labelled tiles, and from a teacher's labels of the target's.

    Args:
        settings: How.
        model: The student, on its device, as it starts.
        augment: Settings of what happens to labelled tiles.
        tile: Side of a tile in pixels.
        steps: Number of steps of the run.
    """

    class Config(Strict):
        """Settings; the sources are DACS (arXiv 2007.08702) and Earth-Adapter (2504.06220)."""

        start: float = Field(0.2, ge=0, lt=1)
        """Share of the steps before the first pseudo-label (Earth-Adapter: 4k of 20k); 0 when
        the run starts from a fitted model."""
        decay: float = Field(0.99, ge=0, lt=1)
        """Largest share of the old value that an update of the teacher keeps (DACS)."""
        threshold: float = Field(0.9, ge=0, le=1)
        """Probability from which a pseudo-label is sure (DACS .968, on another score)."""
        weight: Weight = "image"
        """What tiles of the target count: by their share of sure pixels (DACS), always the same
        (Earth-Adapter), or the same but with sure pixels only."""
        share: float = Field(0.5, ge=0)
        """Factor of the target's loss (Earth-Adapter)."""
        jitter: float = Field(0.2, ge=0, le=1)
        """Largest change of the mixture's gain and offset, overall and per band (DAFormer)."""
        jitter_chance: float = Field(0.8, ge=0, le=1)
        """Share of mixtures that are changed so (DACS)."""
        blur: float = Field(0.0, ge=0, le=1)
        """Share of mixtures that are blurred (Earth-Adapter none; DACS .5). Seen from above, what
        tells classes apart is often texture of a few pixels, which a blur takes away."""
        keep: float = Field(0.5, gt=0, le=1)
        """Without a source: share of the pixels of each class, those of lowest entropy, that are
        learnt from."""

    def __init__(
        self, settings: Config, model: Segmenter, augment: Augment.Config, *, tile: int, steps: int
    ) -> None:
        self.settings = settings
        self.teacher = Teacher(model, settings.decay)
        self.start = round(settings.start * steps)
        """Step of the first pseudo-label."""
        self.done = 0
        """Steps done."""
        self.classes = model.head.classes
        still = dict.fromkeys(("gain", "offset", "band_gain", "band_offset", "noise", "blur"), 0.0)
        in_place = still | {"scale": (1.0, 1.0), "flips": False, "turns": False}
        changed = dict.fromkeys(("gain", "offset", "band_gain", "band_offset"), settings.jitter)

        def changing(update: dict[str, Any]) -> Augment:
            return Augment(augment.model_copy(update=update), tile=tile)

        self.strong, self.weak = changing({}), changing(still)
        self.jitter = changing(in_place | changed)
        self.blur = changing(in_place | {"blur": settings.blur})
        self._seen = _Seen(self.classes)

    @property
    def started(self) -> bool:
        """Whether the teacher gives labels by now."""
        return self.done >= self.start

    def __call__(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms of both domains, named `source ...` and `target ...`."""
        assert isinstance(batch, DomainBatch)
        generator = generator_like(batch.image)
        image, count = model.standardise(batch.image), batch.sources
        parts: list[tuple[Tensor, Tensor]] = []
        groups: list[tuple[str, int, Tensor | float]] = []
        if count:
            parts.append(self.strong(image[:count], batch.label[:count], generator))
            groups.append(("source", count, 1.0))
        if count < len(image) and self.started:
            weak, there = self.weak(image[count:], batch.label[count:], generator)
            found = self._read(weak, there != IGNORE, labelled=bool(count))
            parts.append(self._mixture(parts[0] if count else None, weak, found, generator))
            # Alone, there is nothing to weigh the target against.
            groups += self._weigh(found) if count else [("target", len(weak), 1.0)]
            self._seen.add(found)
        return self._losses(model, parts, groups)

    def _read(self, image: Tensor, there: Tensor, *, labelled: bool) -> PseudoLabels:
        """Ask the teacher about weak views (B, C, H, W) of the target."""
        probabilities = self.teacher.probabilities(image)
        if labelled:
            return by_confidence(probabilities, there, self.settings.threshold)
        return by_entropy(probabilities, there, self.settings.keep)

    def _mixture(
        self,
        source: tuple[Tensor, Tensor] | None,
        weak: Tensor,
        found: PseudoLabels,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Paste source onto target, if there is any, and change what comes out."""
        label = found.label if self.settings.weight != "pixel" else found.sure_only()
        if source is None:
            mixed = weak, found.sure_only()
        else:
            donors = torch.arange(len(weak), device=weak.device) % len(source[0])
            image_, label_ = source[0][donors], source[1][donors]
            mask = pasted(label_, self.classes, generator)
            mixed = paste(mask, (image_, label_), (weak, label))
        return self._view(mixed[0], generator), mixed[1]

    def _view(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Make the strong view of tiles: other radiometry and less sharp."""
        nothing = image.new_zeros(len(image), *image.shape[-2:])
        drawn = own(
            lambda tiles: torch.rand(tiles, generator=generator, device=generator.device),
            len(image),
        )
        chosen = drawn < self.settings.jitter_chance
        changed, _ = self.jitter(image, nothing, generator)
        image = torch.where(chosen.to(image.device)[:, None, None, None], changed, image)
        return self.blur(image, nothing, generator)[0]

    def _weigh(self, found: PseudoLabels) -> list[tuple[str, int, Tensor | float]]:
        """Group the target's tiles by what their loss counts: (name, tiles, weight)."""
        count, share = len(found.label), self.settings.share
        if self.settings.weight != "image":
            return [("target", count, share)]
        # Tiles of different weight pass the head one by one.
        return [("target", 1, share * q / count) for q in found.coverage]

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
            image, label, groups=[count for _, count, _ in groups], apart=sum(alone)
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

    def undo(self) -> None:
        """Forget what the teacher has said since the last step."""
        self._seen.drop()

    def after_step(self, model: Segmenter, step: int) -> None:
        """Let the teacher follow."""
        self._seen.keep()
        self.teacher.follow(step)
        self.done = step + 1

    def record(self) -> dict[str, Json]:
        """Return what the teacher has said since the last line."""
        found, self._seen = self._seen.read(), _Seen(self.classes)
        return {} if found is None else {"teacher": found}

    def state(self) -> dict[str, Tensor]:
        """Collect the teacher and the number of steps done."""
        return self.teacher.state() | {"done": torch.tensor(self.done)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` collected."""
        self.teacher.restore(state)
        self.done = int(state["done"])


class _Seen:
    """Sums of what a teacher says, on the device until they are read."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.kept: Tensor | None = None
        self.sums: Tensor | None = None

    def keep(self) -> None:
        """Take what was added for good."""
        self.kept = self.sums

    def drop(self) -> None:
        """Forget what was added since `keep`."""
        self.sums = self.kept

    @torch.no_grad()
    def add(self, found: PseudoLabels) -> None:
        """Count tiles: image, sure, confidence, and every class."""
        counts = torch.stack([found.there.sum(), found.sure.sum()]).double()
        confidence = found.confidence.masked_fill(~found.there, 0.0).sum()[None].double()
        shape = (IGNORE + 1,)
        ones = torch.ones_like(found.label, dtype=torch.float64).flatten()
        shares = ones.new_zeros(shape).scatter_add_(0, found.label.flatten(), ones)
        line = torch.cat((counts, confidence, shares[: self.classes]))
        self.sums = line if self.sums is None else self.sums + line

    def read(self) -> dict[str, Json] | None:
        """Give shares of all that was seen; None when there was nothing."""
        if self.sums is None:
            return None
        pixels, sure, confidence, *classes = distributed.total(self.sums).tolist()
        pixels = max(1.0, pixels)
        return {
            "coverage": sure / pixels,
            "confidence": confidence / pixels,
            "shares": [count / pixels for count in classes],
        }

"""A slow copy of a model: the moving average of what trains, and the very tensors of the rest."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from rsseg_cli.segmenter import Segmenter


class Teacher:
    """Follows a student (Tarvainen and Valpola 2017); it owns numbers for what trains only.

    Args:
        student: The model that is trained; already on its device.
        decay: Largest share a of the old value that an update keeps. Step t, from 0, keeps
            a_t = min(1 - 1 / (t + 1), decay), so that the first one copies the student.
    """

    def __init__(self, student: Segmenter, decay: float) -> None:
        self.student, self.decay = student, decay
        shared = {id(tensor): tensor for tensor in student.frozen()}
        self.model: Segmenter = copy.deepcopy(student, shared).eval()
        self._own = dict(self.model.trainable_parameters())
        for parameter in self._own.values():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move towards the student after its step `step`."""
        keep = min(1 - 1 / (step + 1), self.decay)
        for name, parameter in self.student.trainable_parameters():
            self._own[name].lerp_(parameter, 1 - keep)
        self._copy_buffers()

    def _copy_buffers(self) -> None:
        """Take over what is no average: which modules are open, which elements are chosen."""
        for part in ("method", "head"):
            theirs, own = self.student.get_submodule(part), self.model.get_submodule(part)
            for name, buffer in theirs.named_buffers():
                owner, _, leaf = name.rpartition(".")
                place = own.get_submodule(owner)
                if place.get_buffer(leaf).shape == buffer.shape:
                    place.get_buffer(leaf).copy_(buffer)
                else:
                    setattr(place, leaf, buffer.clone())

    @torch.no_grad()
    def probabilities(self, image: Tensor) -> Tensor:
        """Give class probabilities (B, K, H, W) for a standardised image."""
        return self.model.probabilities(image).float()

    def state(self) -> dict[str, Tensor]:
        """Collect the averages; buffers are the student's."""
        return {name: parameter.detach() for name, parameter in self._own.items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` collected, beside a student that is restored already."""
        for name, parameter in self._own.items():
            parameter.copy_(state[name])
        self._copy_buffers()

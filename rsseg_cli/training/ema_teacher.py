"""EMA teacher: averages the trainable parameters and shares the frozen ones with the student."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from rsseg_cli.segmenter import Segmenter


class EMATeacher:
    """Exponential moving average (EMA) of a student (Tarvainen and Valpola 2017).

    Args:
        student: The model that is trained; already on its device.
        decay: Maximum decay. At step t, from 0, the decay is min(1 - 1 / (t + 1), decay), so that
            the first update copies the student.
    """

    def __init__(self, student: Segmenter, decay: float) -> None:
        self.student, self.decay = student, decay
        shared = {id(tensor): tensor for tensor in student.frozen_parameters()}
        self.model: Segmenter = copy.deepcopy(student, shared).eval()
        self._averages = dict(self.model.trainable_parameters())
        for parameter in self._averages.values():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages after the student's step number `step`."""
        decay = min(1 - 1 / (step + 1), self.decay)
        for name, parameter in self.student.trainable_parameters():
            self._averages[name].lerp_(parameter, 1 - decay)
        self._copy_buffers()

    def _copy_buffers(self) -> None:
        """Copy the student's buffers: selection masks and gates are not averaged."""
        for module in ("method", "head"):
            source, target = self.student.get_submodule(module), self.model.get_submodule(module)
            for name, buffer in source.named_buffers():
                path, _, leaf = name.rpartition(".")
                owner = target.get_submodule(path)
                if owner.get_buffer(leaf).shape == buffer.shape:
                    owner.get_buffer(leaf).copy_(buffer)
                else:
                    setattr(owner, leaf, buffer.clone())

    @torch.no_grad()
    def probabilities(self, image: Tensor) -> Tensor:
        """Return class probabilities (B, K, H, W) of a standardised image (B, C, H, W)."""
        return self.model.probabilities(image).float()

    def state(self) -> dict[str, Tensor]:
        """Return the averages, without buffers."""
        return {name: parameter.detach() for name, parameter in self._averages.items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Load the averages; the student must have been restored before."""
        for name, parameter in self._averages.items():
            parameter.copy_(state[name])
        self._copy_buffers()

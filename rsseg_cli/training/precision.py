"""Number format (autocast) of the forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from rsseg_cli.choices import Format


@dataclass(frozen=True)
class Precision:
    """Autocast of one run.

    Attributes:
        device: Device of the model.
        dtype: Data type of matrix products; float32 means no autocast.
    """

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def choose(cls, name: Format, device: torch.device) -> Precision:
        """Return a format; `auto` is bf16 on GPUs that support it, fp16 on others, fp32 on CPUs."""
        if name == "auto":
            if device.type != "cuda":
                name = "fp32"
            else:
                name = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
        return cls(device, dtypes[name])

    @property
    def scaled(self) -> bool:
        """Whether the loss must be scaled, so that small gradients do not underflow."""
        return self.dtype == torch.float16

    def autocast(self) -> AbstractContextManager[None]:
        """Return the autocast context."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def probing(self) -> AbstractContextManager[None]:
        """Return `autocast`, but fp32 instead of fp16: unscaled gradients would underflow."""
        return nullcontext() if self.scaled else self.autocast()

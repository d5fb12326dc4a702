"""The number format of the forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from rsseg_cli.choices import Format


@dataclass(frozen=True)
class Precision:
    """Autocast of one run.

    Attributes:
        device: Where the model runs.
        dtype: Format of matrix products; float32 means no autocast.
    """

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def choose(cls, wanted: Format, device: torch.device) -> Precision:
        """Return the format: `auto` is bf16 where the GPU supports it, else fp16; fp32 on CPUs."""
        if wanted == "auto":
            if device.type != "cuda":
                wanted = "fp32"
            else:
                wanted = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
        return cls(device, dtypes[wanted])

    @property
    def scaled(self) -> bool:
        """Whether the loss must be scaled so that small gradients survive."""
        return self.dtype == torch.float16

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context that runs matrix products in this format."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def probing(self) -> AbstractContextManager[None]:
        """Return `autocast`, but fp32 instead of fp16: unscaled fp16 gradients would vanish."""
        return nullcontext() if self.scaled else self.autocast()

"""Between two lines of the log the host does not wait for the device, except where listed here."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training_jobs import job, run

from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.find import names
from rsseg_cli.training.loop import Trainer

WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal")
"""Operations whose result the host needs: its value, or how long it is."""
KNOWN = {
    # At a selection only; a preset makes one every few hundred steps.
    "crossearth_gate": {
        "crossearth_gate._fisher",
        "crossearth_gate._apply_selection",
        "crossearth_gate._size",
        "training_step.backward",
    },
    # Which experts answer for which image: computing all of them costs more than asking.
    "weft": {"pyramid.forward"},
}


class Waits(TorchDispatchMode):
    """Records which functions of rsseg wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        if name in WAITING or masks:
            frames = traceback.extract_stack()
            ours = [one for one in frames if "rsseg_cli" in one.filename]
            # The fused optimizer of a GPU keeps its count of steps there.
            if ours and not any("torch/optim" in one.filename for one in frames):
                self.found.add(f"{Path(ours[-1].filename).stem}.{ours[-1].name}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", names("methods"))
def test_a_step_does_not_wait(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, take = Waits(), Trainer.step

    def watched(self: Trainer, index: int, stream: Iterator[Batch]) -> Any:
        if index < 2:
            return take(self, index, stream)
        with waits:
            return take(self, index, stream)

    monkeypatch.setattr(Trainer, "step", watched)
    run(job(tmp_path, method, steps=4, log_every=4))
    assert waits.found == KNOWN.get(method, set())

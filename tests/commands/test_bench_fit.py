"""`rsseg bench fit` prints measurements under the keys that scripts rely on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import rsseg

from rsseg_cli.commands.bench import method_steps
from rsseg_cli.commands.bench.fit import show
from rsseg_cli.errors import RssegError

TINY = method_steps.StepSize("vit_tiny", 32, 2)


def test_the_loop_beside_a_bare_one(city: Path) -> None:
    call = rsseg(
        "bench", "fit", "--src", city, "--no-methods", "--backbone", "vit_tiny", "--tile", "32",
        "--batch", "2", "--steps", "2", "--rounds", "1", "--device", "cpu", "--json",
    )  # fmt: skip
    assert call.code == 0, call.err
    found = call.document
    assert {"device", "threads", "versions", "size", "sources", "loop", "methods"} == set(found)
    assert found["size"] == {"backbone": "vit_tiny", "tile": 32, "batch": 2}
    assert (found["device"], found["methods"]) == ("cpu", [])
    for one in found["loop"].values():
        assert one["ratio"] == pytest.approx(one["images_per_s"] / one["bare_images_per_s"])
        assert one["cpu_ratio"] > 0


def test_what_a_step_costs(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"method": name} | method_steps.measure(name, TINY, 1, "cpu") for name in ("frozen", "full")
    ]
    frozen, full = method_steps.beside([*rows, {"method": "other", "refused": "too small"}])[:2]
    assert frozen["trained"] < full["trained"]
    # Backward costs twice a forward pass, and a frozen backbone has none.
    assert 2.0 < full["tflop"] / frozen["tflop"] < 3.1
    assert (frozen["step_of_frozen"], full["memory_of_full"]) == (1.0, 1.0)
    assert full["step_of_frozen"] == pytest.approx(full["step_s"] / frozen["step_s"])
    show({
        "size": {"backbone": "vit_tiny", "batch": 2, "tile": 32}, "device": "cpu", "loop": {},
        "methods": [frozen, full, {"method": "other", "refused": "too small"}],
    })  # fmt: skip
    assert "too small" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["depthforge", "spectralmoe"])
def test_depth_comes_from_no_file(method: str) -> None:
    config = method_steps._config(method, TINY)
    assert config.method.config.depth == "random"  # type: ignore[attr-defined]
    assert config.backbone.pretrained is False  # type: ignore[attr-defined]


def test_memory_is_that_of_steps_that_have_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[None] = []
    adam = torch.optim.AdamW.step

    def counted(self: torch.optim.AdamW, *args: Any) -> Any:
        taken.append(None)
        return adam(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    monkeypatch.setattr(method_steps, "peak_memory_mb", lambda device: float(len(taken)))
    assert method_steps.measure("frozen", TINY, 1, "cpu")["peak_memory_mb"] == 2


def test_memory_that_runs_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def here(workers: int, mp_context: Any) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(workers)

    monkeypatch.setattr(method_steps, "make_step", full)
    with pytest.raises(RssegError, match="memory ran out"):
        method_steps.measure("frozen", TINY, 1, "cpu")
    monkeypatch.setattr(method_steps, "ProcessPoolExecutor", here)
    assert method_steps.measure_apart("lora", TINY, 1, "cpu")["refused"].startswith(
        "memory ran out"
    )
    with pytest.raises(RssegError, match="memory ran out"):
        method_steps.measure_apart("full", TINY, 1, "cpu")


def test_refusals_and_usual_sizes() -> None:
    assert method_steps.StepSize.usual(torch.device("cuda")).backbone == "dinov3_large"
    assert method_steps.StepSize.usual(torch.device("cpu")).tile == 256

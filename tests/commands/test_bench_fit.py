"""`rsseg bench fit` measures what it promises, in the keys that scripts rely on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import rsseg

from rsseg_cli.commands.bench import fit
from rsseg_cli.commands.bench.options import BenchFitOptions
from rsseg_cli.errors import RssegError

TINY = fit.StepSize("vit_tiny", 32, 2)


def test_the_loop_beside_a_bare_one(city: Path) -> None:
    call = rsseg(
        "bench", "fit", "--src", city, "--no-methods", "--backbone", "vit_tiny", "--tile", "32",
        "--batch", "2", "--steps", "2", "--rounds", "1", "--device", "cpu", "--json",
    )  # fmt: skip
    assert call.code == 0, call.err
    result = call.document
    assert {"device", "threads", "versions", "size", "sources", "loop", "methods"} == set(result)
    assert result["size"] == {"backbone": "vit_tiny", "tile": 32, "batch": 2}
    assert (result["device"], result["methods"]) == ("cpu", [])
    for row in result["loop"].values():
        assert row["ratio"] == pytest.approx(row["images_per_s"] / row["bare_images_per_s"])


def test_what_a_step_costs(capsys: pytest.CaptureFixture[str]) -> None:
    refused = {"method": "other", "refused": "too small"}
    rows = [fit.measure(name, TINY, 1, "cpu") for name in ("frozen", "full")]
    frozen, full, _ = fit.with_ratios([*rows, refused])
    assert frozen["trained"] < full["trained"]
    assert (frozen["step_of_frozen"], full["memory_of_full"]) == (1.0, 1.0)
    assert full["step_of_frozen"] == pytest.approx(full["step_s"] / frozen["step_s"])
    fit.show({
        "size": {"backbone": "vit_tiny", "batch": 2, "tile": 32}, "device": "cpu", "loop": {},
        "methods": [frozen, full, refused],
    })  # fmt: skip
    assert "too small" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["depthforge", "spectralmoe"])
def test_depth_comes_from_no_file(method: str) -> None:
    config = fit._config(method, TINY)
    assert config.method.config.depth == "random"  # type: ignore[attr-defined]
    assert config.backbone.pretrained is False  # type: ignore[attr-defined]


def test_memory_is_that_of_steps_that_have_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[None] = []
    adam = torch.optim.AdamW.step

    def counted(self: torch.optim.AdamW, *args: Any) -> Any:
        taken.append(None)
        return adam(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    monkeypatch.setattr(fit, "peak_memory_mb", lambda device: float(len(taken)))
    assert fit.measure("frozen", TINY, 1, "cpu")["peak_memory_mb"] == 2


def test_out_of_memory_is_an_error_of_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def here(workers: int, mp_context: Any) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(workers)

    monkeypatch.setattr(fit, "make_step", full)
    with pytest.raises(RssegError, match="out of memory"):
        fit.measure("frozen", TINY, 1, "cpu")
    monkeypatch.setattr(fit, "ProcessPoolExecutor", here)
    assert "out of memory" in fit.measure_in_process("lora", TINY, 1, "cpu")["refused"]
    with pytest.raises(RssegError, match="out of memory"):
        fit.measure_in_process("full", TINY, 1, "cpu")


def test_usual_sizes() -> None:
    options = BenchFitOptions(tile=64)
    large, small = (fit.StepSize.of(options, torch.device(name)) for name in ("cuda", "cpu"))
    assert (large.backbone, large.tile) == ("dinov3_large", 64)
    assert (small.backbone, small.batch) == ("dinov3_small", 2)

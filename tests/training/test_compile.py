"""`--compile`: the walk over the blocks becomes one graph with every method."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import build
from test_contract import batch
from torch import nn
from torch._dynamo.testing import CompileCounter
from training_jobs import SMALL, job, run

from rsseg_cli.find import names
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training.run_folder import RunFolder

BEFORE_THE_BLOCKS = {"weft": "its pyramid asks the host which experts answer for which image"}
"""Methods whose work before the first block breaks the graph, and why."""


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("method", names("methods"))
def test_the_walk_is_one_graph(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(method, **SMALL.get(method, {})).train()
    image, _ = batch(32, 32)
    torch.manual_seed(0)
    plain = model.backbone(image, model.method)
    torch.manual_seed(0)
    if method in BEFORE_THE_BLOCKS:
        with torch.no_grad():
            begun = model.method.begin(image, model.backbone.embed(image)[1])
        monkeypatch.setattr(model.method, "begin", lambda image, grid: begun)
    walk = torch.compile(model.backbone.forward, backend="eager", fullgraph=True)
    found = walk(image, model.method)
    for one, other in zip(plain.maps, found.maps, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert plain.losses.keys() == found.losses.keys()


@pytest.mark.parametrize(("method", "head"), [("lora", "linear"), ("adaptformer", "mask2former")])
def test_compiled_and_plain_learn_the_same(
    method: str, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Segmenter] = []

    def compile_(self: Segmenter) -> None:
        compiled.append(self)
        nn.Module.compile(self, backend="eager")

    monkeypatch.setattr(Segmenter, "compile", compile_)
    losses = []
    for name, wanted in (("plain", False), ("compiled", True)):
        model = build(method, head=head, **SMALL.get(method, {}))
        run(job(tmp_path / name, model=model, steps=2, log_every=1, compile=wanted))
        losses.append([line["loss"] for line in RunFolder(tmp_path / name).records()])
    assert len(compiled) == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_all_passes_share_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for passes in (2, 4):
        torch._dynamo.reset()
        graphs = CompileCounter()
        compile_ = partialmethod(nn.Module.compile, backend=graphs)
        monkeypatch.setattr(Segmenter, "compile", compile_)
        whole: dict[str, Any] = {"batch": 2 * passes, "steps": 1, "compile": True}
        model = build("adaptformer")
        run(job(tmp_path / str(passes), model=model, grad_accumulation=passes, **whole))
        found.append(graphs.frame_count)
    assert found[0] == found[1] > 0

"""FisherTune: how much trains when, what moves, what the file holds, what is refused."""

from __future__ import annotations

import json
import math
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import build, sample
from pydantic import ValidationError
from selections import (
    SETTINGS,
    SeededStep,
    chosen,
    fishertune,
    published_vit_large,
    selected,
    train,
    weights,
)
from test_contract import BANDS
from torch import Tensor

from rsseg_cli.contract import Backbone
from rsseg_cli.errors import RssegError
from rsseg_cli.find import find
from rsseg_cli.methods._fisher.candidates import Candidates
from rsseg_cli.methods.fishertune import FisherTune, schedule
from rsseg_cli.training import optimizer
from rsseg_cli.training.checkpoint import save_model


# --- the schedule ----------------------------------------------------------------------------
def test_schedules() -> None:
    grow = schedule("grow", 0.01, 0.05, 1.0)
    assert grow[0] == 0.01
    assert grow[-1] == pytest.approx(0.05, abs=1e-15)
    assert [round(100 * grow[part], 1) for part in (25, 50, 74)] == [2.4, 3.5, 4.3]
    fast = [0.01 + 0.04 * (1 - math.exp(-5 * t / 99)) / (1 - math.exp(-5)) for t in range(100)]
    assert schedule("grow", 0.01, 0.05, 5.0) == pytest.approx(fast)
    assert set(schedule("constant", 0.01, 0.05, 1.0)) == {0.05}


@pytest.mark.parametrize("kind", ["grow", "constant"])
def test_as_many_are_active_as_the_schedule_says(kind: str) -> None:
    model, method = fishertune(schedule=kind, score="random")
    total, sets = 202, []
    shares = schedule(kind, 0.01, 0.05, 1.0)  # type: ignore[arg-type]
    for index in range(total):
        method.before_step(SeededStep(model, index, total))
        masks = [mask.flatten() for mask in method._masks]
        if index < 2:
            assert not masks
            continue
        active = torch.cat(masks)
        assert int(active.sum()) == round(shares[(index - 2) // 2] * method.candidates.total)
        sets.append(active)
    for earlier, later in pairwise(sets):
        assert not bool((earlier & ~later).any())


def vit_large(name: str) -> Backbone:
    kind = find("backbones", name.split("_")[0], Backbone)
    config: Any = kind.Config.model_validate({"name": name, "pretrained": False})
    with torch.device("meta"):
        backbone: Backbone = kind(config, BANDS.model_copy(update={"names": BANDS.names}))  # type: ignore[call-arg,arg-type]
    return backbone


def test_counts_at_vit_large() -> None:
    backbone = published_vit_large()
    with torch.device("meta"):
        method = FisherTune(FisherTune.Config(), backbone)
    assert method.candidates.total == 304_198_656
    assert method.candidates.size == 276_824_064
    assert method.sizes[0] == 3_041_987
    assert method.sizes[-1] == 15_209_933
    assert len(method.candidates.slices) == 24 * 5
    assert len(list(method.trainable_parameters(backbone))) == 24 * 3


def test_gated_mlps_and_separate_queries() -> None:
    backbone = vit_large("eva02_large")
    candidates = Candidates(backbone, ("q", "k", "v", "fc1", "fc2"))
    assert [part.role for part in candidates.slices[:6]] == ["q", "k", "v", "fc1", "fc1", "fc2"]
    assert len(candidates.weights) == len(candidates.slices) == 24 * 6
    assert len(set(candidates.names)) == 24 * 6


# --- what moves ------------------------------------------------------------------------------
def test_warm_up_and_estimation_move_nothing() -> None:
    model, method = fishertune()
    everything = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    adam = train(model, range(2), total=20)
    assert all(not weight.requires_grad for weight in method.candidates.weights)
    assert len(adam.state) == len(list(model.head.parameters()))
    head = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    method.before_step(SeededStep(model, 2, 20))
    assert len(method.index) == method.sizes[-1]
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, everything[name]), name
    assert all(torch.equal(head[name], one) for name, one in model.head.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert all(weight.requires_grad for weight in method.candidates.weights)


def test_what_is_not_admitted_stays_bit_equal_under_weight_decay() -> None:
    model, method = fishertune(score="random", roles=("q", "fc2"))
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    train(model, range(102), total=102)
    masks = dict(zip(method.candidates.names, chosen(method), strict=True))
    moved = 0
    for name, tensor in model.backbone.state_dict().items():
        same = tensor == before[name]
        if name in masks:
            assert bool(same[~masks[name]].all()), name
            assert float((~same[masks[name]]).float().mean()) > 0.99
            moved += int((~same).sum())
            if "qkv" in name:
                assert not bool(masks[name][64:].any())
        else:
            assert bool(same.all()), name
    assert moved <= method.sizes[-1]


def test_equals_adamw_with_a_mask_and_late_entrants_start_gently() -> None:
    model, method = fishertune(score="random", schedule="grow")
    other, _ = fishertune(score="random", schedule="grow")
    train(model, range(2), total=42)
    train(other, range(2), total=42)
    weight = method.candidates.weights[0]
    name, reference = method.candidates.names[0], weight.detach().double().clone()
    mean = square = torch.zeros_like(reference)
    adam, seen = optimizer.build(SETTINGS, model), torch.zeros_like(weight, dtype=torch.bool)
    first_steps, later_steps = [], []
    for index in range(2, 42):
        step = SeededStep(model, index, 42)
        method.before_step(step)
        mask = dict(zip(method.candidates.names, method._masks, strict=True))[name]
        torch.autograd.backward(torch.stack(list(model(*sample(index, 2)).values())).sum())
        assert weight.grad is not None
        gradient, t = weight.grad.double(), index - 1
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        move = (mean / (1 - 0.9**t)) / ((square / (1 - 0.999**t)).sqrt() + 1e-8)
        decayed = reference * (1 - 1e-2 * 0.3)
        reference = torch.where(mask, decayed - 1e-2 * move, reference)
        adam.step()
        adam.zero_grad(set_to_none=True)
        method.after_step(step)
        assert torch.allclose(weight.double(), reference, atol=1e-6)
        if index > 20:
            first_steps.append(move[mask & ~seen].abs())
            later_steps.append(move[mask & seen].abs())
        seen |= mask
    entered, veterans = torch.cat(first_steps), torch.cat(later_steps)
    assert len(entered) > 50
    assert float(entered.mean() / veterans.mean()) == pytest.approx(1, abs=0.25)


def test_clipping_by_what_is_admitted() -> None:
    model, method = fishertune(score="random", clip=0.5)
    step = SeededStep(model, 2, 20)
    method.before_step(step)
    torch.autograd.backward(500 * torch.stack(list(model(*sample(2, 2)).values())).sum())
    full = [w.grad.clone() for w in method.candidates.weights if w.grad is not None]
    norm = math.sqrt(
        sum(float(g[m].square().sum()) for g, m in zip(full, method._masks, strict=True))
    )
    assert norm > 0.5
    method.before_update(step)
    for weight, gradient in zip(method.candidates.weights, full, strict=True):
        assert torch.allclose(weight.grad, gradient * 0.5 / norm, rtol=1e-4)  # type: ignore[arg-type]
    method.before_update(step)  # small enough now
    assert {id(p) for p in method.no_grad_clip()} == {id(p) for p in method.candidates.weights}


def test_random_queries_only() -> None:
    method, _ = selected(score="random", roles=("q",), share_max=0.02)
    [mask] = {mask[64:].any().item() for mask in chosen(method)}
    assert not mask
    per_block = method.counts.sum(1)
    assert int(per_block.sum()) == round(0.02 * method.candidates.total)
    assert int(per_block.min()) > 0.8 * int(per_block.max())  # chance treats blocks alike


def test_two_processes_choose_the_same() -> None:
    meeting, sums = threading.Barrier(2), {}
    models = [fishertune()[0] for _ in range(2)]

    def averaging(rank: int) -> Any:
        def average(tensor: Tensor) -> Tensor:
            sums[rank] = tensor.clone()
            meeting.wait(60)
            mean = (sums[0] + sums[1]) / 2
            meeting.wait(60)
            return tensor.copy_(mean)

        return average

    lock = threading.Lock()

    class Locked(SeededStep):
        def probes(self, count: int, *, samples: int = 1) -> Any:
            for probe in super().probes(count, samples=samples):
                with lock:  # the seed of the fake is torch's global one
                    yield probe

    def select(rank: int) -> None:
        step = Locked(models[rank], 2, 20, averaged=averaging(rank), first=10 * rank)
        models[rank].method.before_step(step)

    threads = [threading.Thread(target=select, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    one, two = (model.method for model in models)
    assert len(one.index) > 0
    assert torch.equal(one.index, two.index)
    assert torch.equal(one.counts, two.counts)
    assert not torch.equal(one.index, selected()[0].index)


# --- files -----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["grow", "constant"])
@pytest.mark.parametrize("stop", [1, 3, 9])
def test_a_restart_changes_no_bit(kind: str, stop: int) -> None:
    model, method = fishertune(schedule=kind)
    adam = train(model, range(stop), total=14)
    state = {name: tensor.clone() for name, tensor in model.adapter_state().items()}
    moments = {k: v.clone() if isinstance(v, Tensor) else v for k, v in adam.state_dict().items()}
    moments = torch.load(_saved(moments), weights_only=True)
    train(model, range(stop, 14), total=14, adam=adam)

    other, resumed = fishertune(seed=9, schedule=kind)
    other.load_adapter_state(state)
    again = optimizer.build(SETTINGS, other)
    again.load_state_dict(moments)
    train(other, range(stop, 14), total=14, adam=again)
    for a, b in zip(weights(model), weights(other), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(method.index, resumed.index)
    for a, b in zip(model.head.parameters(), other.head.parameters(), strict=True):
        assert torch.equal(a, b)


def _saved(state: Any) -> Any:
    import io

    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return stream


def test_the_file_holds_eight_bytes_an_element(tmp_path: Path) -> None:
    model, method = fishertune(share_max=0.3)
    model.backbone.weights_are_public = True
    train(model, range(8), total=8)
    packed = {name: tensor.clone() for name, tensor in model.adapter_state().items()}
    assert not any(name.startswith(("rest.", "backbone.")) for name in packed)
    own = {name: tensor for name, tensor in packed.items() if name.startswith("method.")}
    save_model(tmp_path / "model.safetensors", own, {})
    size, elements = (tmp_path / "model.safetensors").stat().st_size, method.sizes[-1]
    assert size < 8 * elements + 10_000
    # 15,209,933 elements and the counts of 120 parts: 122 MB.
    assert round((8 * 15_209_933 + 4 * 120 * 100) / 1e6) == 122
    fresh, loaded = fishertune(share_max=0.3)
    fresh.backbone.weights_are_public = True
    for _ in range(2):
        fresh.load_adapter_state(packed)
        for a, b in zip(weights(model), weights(fresh), strict=True):
            assert torch.equal(a, b)
    assert all(
        torch.equal(t, packed[name]) for name, t in loaded.adapter_state(fresh.backbone).items()
    )


# --- what the user sees ----------------------------------------------------------------------
def test_record_and_picture(tmp_path: Path) -> None:
    model, method = fishertune()
    records: list[dict[str, Any]] = []
    adam = None
    for start in (0, 2, 9):
        stop = {0: 2, 2: 9, 9: 16}[start]
        adam = train(model, range(start, stop), total=16, adam=adam)
        records.append({"step": stop, "method": method.log_entry()})
    records = json.loads(json.dumps([*records, {"step": 16, "val": {"miou": 0.1}}]))
    warm, early, late = (line["method"] for line in records[:3])
    assert warm == {"phase": "warmup", "tuned": 0, "tuned_share": 0.0}
    assert late["tuned"] == method.sizes[-1]
    assert late["tuned_share"] == pytest.approx(0.05, abs=1e-4)
    assert "sensitivity" in early
    assert "sensitivity" not in late
    assert 0 < early["domain_share"] < 1
    sizes = dict.fromkeys(("q", "k", "v"), 64 * 64) | dict.fromkeys(("fc1", "fc2"), 256 * 64)
    table = late["tuned_by_part"]
    assert list(table) == list(sizes)
    tuned = sum(share * sizes[role] for role, row in table.items() for share in row)
    assert tuned == pytest.approx(late["tuned"], rel=2e-3)
    mean = sum(score * sizes[role] for role, row in early["sensitivity"].items() for score in row)
    assert mean / method.candidates.size == pytest.approx(1, rel=2e-3)
    [(name, figure)] = FisherTune.figures(records)
    figure.savefig(tmp_path / f"{name}.png")
    assert (tmp_path / "sensitivity.png").stat().st_size > 10_000
    assert figure.axes[0].get_images()[0].get_array().shape == (5, 4)  # type: ignore[union-attr]
    assert not list(FisherTune.figures([{"step": 1, "loss": 0.1}, records[0]]))


# --- bad input -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "said"),
    [({"share_min": 0.2, "share_max": 0.1}, "larger than share_max"),
     ({"share_max": 1.2}, "less than or equal to 1"), ({"share_min": 0}, "greater than 0"),
     ({"amplitude": (2.0, 1.0)}, "smallest <= largest"), ({"roles": ["q", "q"]}, "named once"),
     ({"roles": []}, "at least 1"), ({"steepness": 0}, "greater than 0"),
     ({"schedule": "shrink"}, "'grow' or 'constant'")],
)  # fmt: skip
def test_settings_out_of_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FisherTune.Config.model_validate(settings)


def test_phases_longer_than_the_run() -> None:
    model, method = fishertune(estimation=21)
    with pytest.raises(RssegError, match="21 iterations is longer than the run of 20") as caught:
        method.before_step(SeededStep(model, 0, 20))
    assert caught.value.where == "method.estimation"
    model, method = fishertune(warmup=20)
    with pytest.raises(RssegError, match="warm-up of 20 steps leaves nothing") as caught:
        method.before_step(SeededStep(model, 0, 20))
    assert caught.value.where == "method.warmup"


def test_backbones_without_the_candidates() -> None:
    backbone = build("frozen").backbone
    with pytest.raises(RssegError, match="cannot be chosen from") as caught:
        FisherTune(FisherTune.Config(roles=("q",), share_max=0.5), backbone)
    assert "fewer" in caught.value.fix or "smaller" in caught.value.fix
    with pytest.raises(RssegError, match="after \\[4\\] blocks"):
        FisherTune(FisherTune.Config(sites=(0, 4)), backbone)
    backbone.projections = lambda index, role: []  # type: ignore[method-assign]
    with pytest.raises(RssegError, match="block 0 of the backbone has no q weights"):
        FisherTune(FisherTune.Config(), backbone)


@pytest.mark.parametrize("factor", [0.0, float("nan")])
def test_gradients_that_say_nothing(factor: float) -> None:
    model, method = fishertune()
    with pytest.raises(RssegError, match="zero or not finite at step 2"):
        method.before_step(SeededStep(model, 2, 20, factor))

"""CrossEarth-Gate: what is measured, what is chosen, what moves, what survives a restart."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeStep, at_vit_large, build, sample
from pydantic import ValidationError
from test_contract import BANDS
from torch import Tensor

from rsseg_cli.errors import RssegError
from rsseg_cli.methods._fisher.module_selection import normalise, top
from rsseg_cli.methods.crossearth_gate import CrossEarthGate
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import optimizer

BLOCKS = 4
SMALL: dict[str, Any] = {
    "rank": 4, "alpha": 4.0, "bottleneck": 8, "frequency_bottleneck": 4, "samples": 3, "every": 5
}  # fmt: skip
PARTS = {
    "spatial": lambda i: (f"spatial.updates.{2 * i}.", f"spatial.updates.{2 * i + 1}."),
    "semantic": lambda i: (f"semantic.blocks.{i}.",),
    "frequency": lambda i: (f"frequency.blocks.{i}.",),
}
"""Prefix of the parameter names of module `i` of a type."""


def gated(seed: int = 0, **settings: Any) -> tuple[Segmenter, CrossEarthGate]:
    model = build("crossearth_gate", seed=seed, **(SMALL | settings))
    assert isinstance(model.method, CrossEarthGate)
    return model, model.method


def shake(model: Segmenter) -> None:
    """Leave the start, where half of the gradients are 0."""
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def module_of(method: CrossEarthGate, name: str) -> tuple[int, int]:
    """Find type and block of a parameter by its name."""
    found = [
        (row, block)
        for row, pathway in enumerate(method.config.pathways)
        for block in range(BLOCKS)
        if name.startswith(PARTS[pathway](block))
    ]
    assert len(found) == 1, name
    return found[0]


def train(model: Segmenter, steps: range) -> list[int]:
    """Run a plain loop with the method's hooks; return the probes of each step."""
    model.train()
    adam = optimizer.build(optimizer.Optimization(lr=1e-2, weight_decay=0.3), model)
    probed = []
    for index in steps:
        step = FakeStep(model, index)
        model.method.before_step(step)
        torch.autograd.backward(torch.stack(list(model(*sample(index, 2)).values())).sum())
        adam.step()
        adam.zero_grad(set_to_none=True)
        probed.append(step.probed)
    return probed


# --- size and start --------------------------------------------------------------------------
def test_counts_at_vit_large() -> None:
    backbone, method = at_vit_large(CrossEarthGate, BANDS)
    sizes = torch.zeros(3, 24, dtype=torch.int64)
    for name, parameter in method.named_parameters():
        pathway, _, number = name.split(".")[:3]
        row = method.config.pathways.index(pathway)  # type: ignore[arg-type]
        sizes[row, int(number) // (2 if pathway == "spatial" else 1)] += parameter.numel()
    assert sizes.tolist() == [[262_144] * 24, [132_160] * 24, [202_852] * 24]
    assert sum(p.numel() for _, p in method.trainable_parameters(backbone)) == 14_331_744
    assert method.count == 18
    ranked = sizes.flatten().sort().values
    assert ranked[:18].sum() == 2_378_880
    assert ranked[-18:].sum() == 4_718_592


def test_starts_as_the_frozen_backbone_bit_for_bit() -> None:
    image = torch.randn(2, 4, 40, 72)
    plain, (tuned, _) = build("frozen"), gated()
    before = plain.backbone(image, plain.method).maps
    after = tuned.backbone(image, tuned.method).maps
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_settings_reach_the_modules() -> None:
    _, method = gated(rank=3, alpha=6.0, bottleneck=5, scale=0.3, frequency_bottleneck=7, rho=0.9)
    assert method.spatial is not None
    assert method.semantic is not None
    assert method.frequency is not None
    assert [(u.scale, u.down.shape[1]) for u in method.spatial.updates] == [(2.0, 3)] * 8
    for block in method.semantic.blocks:
        branch = block.branch
        assert (block.scale, branch.down.out_features) == (0.3, 5)
        assert (branch.activation, branch.dropout) == ("gelu", 0.0)
    assert [block.hidden for block in method.frequency.blocks] == [7] * BLOCKS
    assert method.frequency.rho == 0.9


def test_a_pathway_can_be_left_out() -> None:
    model, method = gated(pathways=("frequency", "semantic"))
    assert method.spatial is None
    assert method.active.shape == (2, BLOCKS)
    assert method.count == 3  # of eight as of twelve: an ablation changes one thing
    train(model, range(2))
    assert not [name for name, _ in model.trainable_parameters() if "spatial" in name]


# --- scores ----------------------------------------------------------------------------------
def reference(model: Segmenter, method: CrossEarthGate, samples: int, side: int) -> Tensor:
    """Differentiate sample by sample, parameter by parameter."""
    model.requires_grad_(False)
    method.requires_grad_(True)
    names, parameters = zip(*method.named_parameters(), strict=True)
    fisher = torch.zeros(len(method.config.pathways), BLOCKS, dtype=torch.float64)
    for number in range(samples):
        loss = torch.stack(list(model(*sample(number, side=side)).values())).sum()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                fisher[module_of(method, name)] += gradient.double().pow(2).sum() / samples
    model.freeze()
    return fisher


@pytest.mark.parametrize("head", ["linear", "mask2former"])
def test_fisher_information_of_each_module(head: str) -> None:
    model = build("crossearth_gate", head=head, **SMALL)
    method = model.method
    assert isinstance(method, CrossEarthGate)
    shake(model)
    model.train()
    torch.manual_seed(0)
    measured = method._fisher(FakeStep(model, side=64))
    torch.manual_seed(0)
    expected = reference(model, method, samples=3, side=64)
    assert expected.min() > 0
    assert torch.allclose(measured.double(), expected, rtol=1e-3)


@pytest.mark.parametrize(("how", "axis"), [("type", 1), ("layer", 0)])
def test_scores_sum_to_one(how: str, axis: int) -> None:
    model, method = gated(normalise=how)
    shake(model)
    method.before_step(FakeStep(model))
    sums = method.scores.sum(axis)
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-6)


def test_scores_ignore_the_scale_of_the_loss() -> None:
    found = []
    for factor in (1.0, 10.0):
        model, method = gated()
        shake(model)
        method.before_step(FakeStep(model, factor=factor))
        found.append((method.scores, method.active))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-4)
    assert torch.equal(found[0][1], found[1][1])


def test_a_type_without_gradients_scores_nothing() -> None:
    fisher = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    assert normalise(fisher, "type").tolist() == [[0.0, 0.0], [0.25, 0.75]]
    assert normalise(fisher, "layer").tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert torch.equal(normalise(fisher, "none"), fisher)


def test_ties_go_to_the_lower_block_and_then_the_earlier_type() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.1], [0.1, 0.1, 0.9]])
    assert top(scores, 2).nonzero().tolist() == [[0, 1], [1, 2]]
    assert top(scores, 3).nonzero().tolist() == [[0, 0], [0, 1], [1, 2]]
    assert top(scores, 4)[:, 0].tolist() == [True, True]
    assert top(scores, 6).all()


def test_all_processes_choose_by_the_average() -> None:
    model, method = gated(normalise="none", active=2)
    elsewhere = torch.zeros(3, BLOCKS)
    elsewhere[0, 3] = elsewhere[2, 1] = 1e6
    step = FakeStep(model, averaged=lambda t: (t + elsewhere) / 2 if t.shape == (3, 4) else t)
    method.before_step(step)
    assert method.active.nonzero().tolist() == [[0, 3], [2, 1]]


def test_gradients_that_are_no_numbers_stop_the_run() -> None:
    model, method = gated()
    with pytest.raises(RssegError, match="not finite numbers at step 5"):
        method.before_step(FakeStep(model, 5, factor=float("nan")))


# --- what trains -----------------------------------------------------------------------------
@pytest.mark.parametrize("count", [None, 1, 5, 12])
def test_exactly_k_modules_and_the_head_train(count: int | None) -> None:
    model, method = gated(active=count)
    method.before_step(FakeStep(model))
    assert int(method.active.sum()) == (count or 3)
    for name, parameter in method.named_parameters():
        assert parameter.requires_grad == bool(method.active[module_of(method, name)])
    assert all(p.requires_grad for p in model.head.parameters())
    assert all(not p.requires_grad for p in model.backbone.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_what_is_not_active_stays_bit_equal_under_weight_decay() -> None:
    model, method = gated()
    shake(model)
    seen = []
    for start in (0, 5, 10):
        train(model, range(start, start + 1))
        before = {name: p.detach().clone() for name, p in method.named_parameters()}
        assert train(model, range(start + 1, start + 5)) == [0] * 4
        for name, parameter in method.named_parameters():
            active = bool(method.active[module_of(method, name)])
            assert torch.equal(parameter, before[name]) != active, name
        seen.append(method.active.clone())
    assert torch.equal(method.ever, seen[0] | seen[1] | seen[2])


def test_when_modules_are_selected() -> None:
    for selection, expected in {
        "fisher": [3, 0, 0, 0, 0, 3, 0],
        "static": [3, 0, 0, 0, 0, 0, 0],
        "random": [0] * 7,
        "all": [0] * 7,
    }.items():
        model, method = gated(selection=selection)
        assert train(model, range(7)) == expected
        assert int(method.active.sum()) == (12 if selection == "all" else 3)


def test_a_later_selection_measures_every_module_again() -> None:
    model, method = gated()
    shake(model)
    train(model, range(5))
    first = method.scores.clone()
    train(model, range(5, 6))
    assert int(method.selected) == 5
    assert (method.scores > 0).all()
    assert not torch.equal(method.scores, first)


def test_random_selections_change_and_repeat() -> None:
    chosen = []
    for seed in (0, 0, 1):
        model, method = gated(seed, selection="random", every=1)
        for index in range(6):
            method.before_step(FakeStep(model, index))
            chosen.append(tuple(method.active.flatten().tolist()))
    assert chosen[:6] == chosen[6:12] != chosen[12:]
    assert len(set(chosen[:6])) > 1


def test_blocks_below_the_lowest_active_module_have_no_graph() -> None:
    model, method = gated()
    method.active.fill_(False)
    method.active[1, 2] = True
    method.before_step(FakeStep(model, 1))
    maps = model.backbone(sample(0)[0], method).maps
    assert [one.requires_grad for one in maps] == [False, False, True, True]


def test_unselected_modules_act_unless_bypassed() -> None:
    image = sample(0)[0]
    answers = {}
    for unselected in ("frozen", "bypass"):
        model, method = gated(unselected=unselected)
        shake(model)
        method.before_step(FakeStep(model))
        answers[unselected] = model.backbone(image, method).maps[-1]
        for name, parameter in method.named_parameters():
            if not method.active[module_of(method, name)]:
                torch.nn.init.zeros_(parameter)
        answers[f"{unselected} without"] = model.backbone(image, method).maps[-1]
    assert not torch.equal(answers["frozen"], answers["frozen without"])
    assert torch.allclose(answers["bypass"], answers["bypass without"], atol=1e-6)
    assert torch.allclose(answers["bypass"], answers["frozen without"], atol=1e-6)


@pytest.mark.parametrize("unselected", ["frozen", "bypass"])
def test_a_restart_keeps_what_is_active(unselected: str) -> None:
    model, method = gated(unselected=unselected)
    train(model, range(7))
    packed = {name: tensor.clone() for name, tensor in model.adapter_state().items()}
    other, resumed = gated(seed=9, unselected=unselected)
    other.load_adapter_state(packed)
    assert train(model, range(7, 8)) == train(other, range(7, 8)) == [0]
    flags = [p.requires_grad for p in method.parameters()]
    assert [p.requires_grad for p in resumed.parameters()] == flags
    assert 0 < sum(flags) < len(flags)
    last, again = method.log_entry(), resumed.log_entry()
    for key in ("active", "trainable", "trainable_mean", "trainable_ever"):
        assert last[key] == again[key]
    assert again["selections"] == last["selections"][-1:]  # type: ignore[index]
    image = sample(3)[0]
    for a, b in zip(
        model.backbone(image, method).maps, other.backbone(image, resumed).maps, strict=True
    ):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_copy_chooses_for_itself() -> None:
    model, method = gated(unselected="bypass")
    shake(model)
    train(model, range(1))
    teacher = copy.deepcopy(
        model, memo={id(tensor): tensor for tensor in model.frozen_parameters()}
    )
    theirs = teacher.method
    assert isinstance(theirs, CrossEarthGate)
    ours = {id(p) for p in method.parameters()} | {id(b) for b in method.buffers()}
    assert not ours & {id(p) for p in (*theirs.parameters(), *theirs.buffers())}
    before = [p.requires_grad for p in method.parameters()]
    theirs.active.copy_(~theirs.active)
    theirs._apply_selection()
    assert [p.requires_grad for p in method.parameters()] == before
    assert [p.requires_grad for p in theirs.parameters()] == [not flag for flag in before]


def test_the_forward_pass_is_one_graph_for_the_compiler() -> None:
    model, _ = gated(unselected="bypass")
    shake(model)
    image = sample(0)[0]
    compiled = torch.compile(model.backbone.forward, backend="eager", fullgraph=True)
    for a, b in zip(
        compiled(image, model.method).maps, model.backbone(image, model.method).maps, strict=True
    ):
        assert torch.allclose(a, b, atol=1e-6)


# --- what the user sees ----------------------------------------------------------------------
def test_record_and_picture(tmp_path: Path) -> None:
    model, method = gated()
    records: list[dict[str, Any]] = [{"step": 0, "val": {"miou": 0.5}}]
    for start in (0, 4, 8):
        train(model, range(start, start + 4))
        records.append({"step": start + 4, "method": method.log_entry()})
    records = json.loads(json.dumps(records))
    lines = [line["method"] for line in records[1:]]
    assert [[s["step"] for s in line["selections"]] for line in lines] == [[0], [5], [10]]
    first = lines[0]["selections"][0]
    assert sum(len(blocks) for blocks in first["active"].values()) == lines[0]["active"] == 3
    assert list(first["scores"]) == ["spatial", "semantic", "frequency"]
    assert sum(first["scores"]["semantic"]) == pytest.approx(1, abs=2e-3)
    for line in lines:
        assert 0 < line["trainable"] <= line["trainable_ever"] <= 12 * 1400
        assert 0 < line["cost"]["selection"] < 1
    last = sum(p.numel() for n, p in method.named_parameters() if method.ever[module_of(method, n)])
    assert lines[-1]["trainable_ever"] == last
    [(name, figure)] = CrossEarthGate.figures(records)
    figure.savefig(tmp_path / f"{name}.png")
    assert (tmp_path / "pathways.png").stat().st_size > 5_000
    pictures = [axis.get_images()[0].get_array() for axis in figure.axes[:3]]
    shown = sum(int((~picture.mask).sum()) for picture in pictures)  # type: ignore[union-attr]
    assert shown == 3 * 3  # three modules after each of three selections
    assert not list(CrossEarthGate.figures([{"step": 1, "loss": 0.1}]))


def test_mean_of_the_trainable_parameters() -> None:
    model, method = gated(every=2)
    now = []
    for index in range(4):
        train(model, range(index, index + 1))
        now.append(method.log_entry()["trainable"])
    assert method.log_entry()["trainable_mean"] == sum(now) // 4  # type: ignore[arg-type]


# --- bad settings ----------------------------------------------------------------------------
def test_more_active_modules_than_there_are() -> None:
    with pytest.raises(RssegError, match="13 of 12 modules") as caught:
        gated(active=13)
    assert caught.value.where == "method.active"
    assert "1..12" in caught.value.fix
    with pytest.raises(RssegError, match="5 of 4 modules"):
        gated(active=5, pathways=("semantic",))


@pytest.mark.parametrize(
    ("key", "value"),
    [("every", 0), ("samples", 0), ("active", 0), ("rho", 0), ("pathways", []),
     ("pathways", ["spatial", "spatial"]), ("normalise", "both"), ("rank", 0)],
)  # fmt: skip
def test_settings_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        CrossEarthGate.Config.model_validate({key: value})
    assert caught.value.errors()[0]["loc"][0] == key


def test_a_backbone_without_queries() -> None:
    model = build("frozen")
    model.backbone.projections = lambda index, role: []  # type: ignore[method-assign]
    with pytest.raises(RssegError, match="no q projection") as caught:
        CrossEarthGate(CrossEarthGate.Config(), model.backbone)
    assert caught.value.where == "method.pathways"
    CrossEarthGate(CrossEarthGate.Config(pathways=("semantic",)), model.backbone)

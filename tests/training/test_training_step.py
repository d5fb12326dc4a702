"""A step's probes repeat themselves, and leave neither gradients nor random numbers behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import FakeStep, build
from torch import Tensor
from training_jobs import Scripted, Tiles

from rsseg_cli import distributed
from rsseg_cli.choices import Format
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.threads import Indexed
from rsseg_cli.training import optimizer
from rsseg_cli.training.optimizer import Optimization
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.progress import Progress
from rsseg_cli.training.training_step import TrainingStep, seed_for

CPU = torch.device("cpu")


class Asked:
    """Tiles that remember which of them were asked for."""

    def __init__(self, samples: int) -> None:
        self.tiles, self.numbers = Tiles("probe", 0, samples), list[int]()

    def __getitem__(self, index: int) -> Batch:
        self.numbers.append(index)
        return self.tiles[index]


def step(
    index: int = 0, precision: Format = "fp32", **changes: Any
) -> tuple[TrainingStep, list[Asked]]:
    opened: list[Asked] = []

    def open_probes(samples: int) -> Indexed[Batch]:
        opened.append(Asked(samples))
        return opened[-1]

    parts: dict[str, Any] = {
        "index": index, "total": 9, "model": build("full").train(), "objective": Scripted(),
        "precision": Precision.choose(precision, CPU), "device": CPU, "seed": 7,
        "open_probes": open_probes,
    }  # fmt: skip
    return TrainingStep(**parts), opened


def gradients(model: Segmenter) -> list[Tensor]:
    return [p.grad.clone() for _, p in model.trainable_parameters() if p.grad is not None]


def test_a_probe_repeats_itself() -> None:
    one, _ = step()
    found = []
    for probe in one.probes(2):
        losses = [probe.backward(), probe.backward()]
        found.append((losses, gradients(one.model)))
        probe.backward()
        for before, after in zip(found[-1][1], gradients(one.model), strict=True):
            assert torch.equal(before, after)
    assert [len(set(losses)) for losses, _ in found] == [1, 1]
    assert found[0][0][0] != found[1][0][0]
    assert not gradients(one.model)


def test_gradients_go_even_if_a_method_stops_early() -> None:
    one, _ = step()
    probes = one.probes(2)
    next(probes).backward()
    assert gradients(one.model)
    probes.close()  # type: ignore[attr-defined]
    assert not gradients(one.model)


def test_random_numbers_of_the_training_stay() -> None:
    one, _ = step()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for probe in one.probes(2):
        probe.backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_and_processes_see_other_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    for index in (0, 1):
        one, opened = step(index)
        list(one.probes(3, samples=4))
        assert opened[0].tiles.count == 4
        seen += opened[0].numbers
    assert seen == [0, 1, 2, 3, 4, 5]
    shares = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        one, opened = step(1)
        list(one.probes(3))
        shares.append(opened[0].numbers)
    assert shares == [[3, 5], [4]]


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp16", torch.float32), ("bf16", torch.bfloat16), ("fp32", torch.float32)],
)
def test_probes_of_a_run_in_fp16_are_fp32(precision: Format, dtype: torch.dtype) -> None:
    one, _ = step(precision=precision)
    seen: list[torch.dtype] = []
    one.model.backbone.register_forward_hook(lambda *all: seen.append(all[2].maps[0].dtype))
    qkv = one.model.backbone.projections(0, "q")[0].module
    qkv.register_forward_hook(lambda *all: seen.append(all[2].dtype))
    next(iter(one.probes(1))).backward()
    assert seen[0] == dtype


def test_seeds_differ_between_steps_streams_and_runs() -> None:
    seeds = {seed_for(s, i, t) for s in (0, 1, 42) for i in range(50) for t in (0, 1, 0x5EED)}
    assert len(seeds) == 3 * 50 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_auto_precision_is_full_on_a_cpu() -> None:
    assert Precision.choose("auto", CPU).dtype == torch.float32
    assert not Precision.choose("bf16", CPU).scaled
    assert Precision.choose("fp16", CPU).scaled


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("poly", [0.5, 1.0, 1.0, 0.75**0.9, 0.5**0.9, 0.25**0.9]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_schedules(schedule: Any, expected: list[float]) -> None:
    settings = Optimization(schedule=schedule, warmup=2)
    assert [optimizer.factor(settings, i, 6) for i in range(6)] == pytest.approx(expected)


def test_what_decays_and_how_fast_it_learns() -> None:
    model = build("full")
    settings = Optimization(lr=1e-3, backbone_lr=1e-4, weight_decay=0.1)
    adam = optimizer.build(settings, model)
    groups = {id(p): (g["lr"], g["weight_decay"]) for g in adam.param_groups for p in g["params"]}
    tuned = dict(model.trainable_parameters())
    assert set(groups) == {id(parameter) for parameter in tuned.values()}
    for name, parameter in tuned.items():
        lr = 1e-4 if name.startswith("backbone.") else 1e-3
        assert groups[id(parameter)] == (lr, 0.1 if parameter.ndim > 1 else 0.0), name
    assert optimizer.set_lr(adam, settings, 0, 10) == pytest.approx(1e-4)
    optimizer.set_lr(adam, settings, 5, 10)
    assert {g["lr"] / g["full_lr"] for g in adam.param_groups} == {0.5**0.9}


def test_the_progress_line_shows_what_a_method_costs() -> None:
    progress = Progress(10, quiet=True)
    record: dict[str, Any] = {
        "loss": 1.0, "losses": {"seg": 1.0}, "lr": 1e-3, "images_per_s": 2.0, "wait": 0.0,
        "method": {"active": 3, "cost": {"selection": 0.04}},
    }  # fmt: skip
    progress.log(record)
    assert progress.bar.tasks[0].fields["line"].endswith("selection 4%")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fish", {"samples": 1}),
        ("childtune", {"samples": 1, "batch": 1}),
        ("childtune", {"form": "F"}),
        ("fishertune", {"estimation": 1, "statistics": 1, "gauge": 1}),
    ],
)
def test_the_progress_line_shows_no_share_of_parameters_as_a_cost(
    name: str, settings: dict[str, Any]
) -> None:
    model, progress = build(name, warmup=0, **settings), Progress(10, quiet=True)
    model.method.before_step(FakeStep(model))
    record: dict[str, Any] = {
        "loss": 1.0, "losses": {"seg": 1.0}, "lr": 1e-3, "images_per_s": 2.0, "wait": 0.0,
        "method": model.method.log_entry(),
    }  # fmt: skip
    assert record["method"]["tuned_share"] > 0
    progress.log(record)
    assert progress.bar.tasks[0].fields["line"].endswith("wait 0%")

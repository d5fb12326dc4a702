"""Probes of methods that measure gradients during an adaptation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import build
from test_self_training import Both, objective
from torch import Tensor
from training_jobs import SMALL, job, run

from rsseg_cli.classes import IGNORE
from rsseg_cli.data.tiles.augment import Augment
from rsseg_cli.data.tiles.domain_batches import DomainBatch, ProbeTiles
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.pseudo_labels import by_entropy
from rsseg_cli.training.self_training import SelfTraining
from rsseg_cli.training.training_step import TrainingStep

CPU = torch.device("cpu")
STILL = Augment.Config(scale=(1.0, 1.0), flip=False, rot90=False)


class One:
    """Item i: a labelled tile, or one of the target, of which the first rows are nodata."""

    def __init__(self, domain: str) -> None:
        self.domain, self.read = domain, 0

    def __getitem__(self, index: int) -> DomainBatch:
        self.read += 1
        both = Both()[index]
        if self.domain == "source":
            return DomainBatch(both.image[:1], both.label[:1], seeds=both.seeds[:1], sources=1)
        return DomainBatch(both.image[1:], both.label[1:], seeds=both.seeds[1:], sources=0)


def made(method: str, **settings: Any) -> tuple[Segmenter, SelfTraining]:
    torch.manual_seed(0)
    model = build(method, **SMALL.get(method, {})).train()
    with torch.no_grad():
        for _, parameter in model.trainable_parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    chosen = {"warmup_fraction": 0.0, "jitter": 0.0, "blur": 0.0} | settings
    config = SelfTraining.Config.model_validate(chosen)
    return model, SelfTraining(config, model, STILL, tile=32, steps=5)


def probes(said: SelfTraining) -> tuple[ProbeTiles, One, One]:
    source, target = One("source"), One("target")
    tiles: Any = ProbeTiles(source, target, lambda: said.started)  # type: ignore[arg-type]
    return tiles, source, target


def step_of(model: Segmenter, said: SelfTraining, tiles: Any) -> TrainingStep:
    return TrainingStep(
        index=0, total=5, model=model, objective=said, device=CPU, seed=3,
        precision=Precision.choose("fp32", CPU), open_probes=lambda samples: tiles,
    )  # fmt: skip


def fisher(model: Segmenter, said: SelfTraining, tiles: Any) -> Tensor:
    method: Any = model.method
    found: Tensor = method._fisher(step_of(model, said, tiles))
    return found.clone()


@pytest.mark.parametrize(("start", "expected"), [(0.4, (4, 0)), (0.0, (2, 2))])
def test_half_the_probes_are_of_the_target_once_there_are_labels(
    start: float, expected: tuple[int, int]
) -> None:
    model, said = made("crossearth_gate", warmup_fraction=start)
    tiles, source, target = probes(said)
    list(step_of(model, said, tiles).probes(4))
    assert (source.read, target.read) == expected


def test_the_gate_measures_what_the_teacher_says_of_the_target() -> None:
    model, said = made("crossearth_gate", keep_fraction=1.0)
    method: Any = model.method
    method.config = method.config.model_copy(update={"samples": 4})
    tiles, source, _ = probes(said)
    of_source, mixed = fisher(model, said, source), fisher(model, said, tiles)
    assert mixed.shape == of_source.shape
    assert not torch.allclose(mixed, of_source, rtol=0.05)
    # Another teacher labels the target in another way, and changes nothing of the source.
    with torch.no_grad():
        for name, parameter in said.teacher.model.trainable_parameters():
            if name.startswith("head."):
                parameter += torch.randn_like(parameter)
    assert torch.equal(fisher(model, said, source), of_source)
    assert not torch.allclose(fisher(model, said, tiles), mixed, rtol=0.05)


def test_the_measure_is_the_mean_square_of_a_plain_gradient() -> None:
    model, said = made("crossearth_gate", keep_fraction=1.0)
    method: Any = model.method
    method.config = method.config.model_copy(update={"samples": 1})
    target = One("target")
    measured = fisher(model, said, target)
    # The same by hand: the teacher's labels of pixels with an image, and cross-entropy.
    method._train_only(torch.ones_like(method.active))
    batch = target[0]
    image = model.standardise(batch.image)
    label = by_entropy(said.teacher.probabilities(image), batch.label != IGNORE, 1.0).sure_only()
    scores = model.probabilities(image).clamp(min=1e-12).log()
    loss = torch.nn.functional.nll_loss(scores, label, ignore_index=IGNORE)
    loss.backward()  # type: ignore[no-untyped-call]
    by_hand = [
        [sum(float((p.grad**2).sum()) for p in ps if p.grad is not None) for ps in row]
        for row in method._by_module()
    ]
    assert measured.numpy() == pytest.approx(torch.tensor(by_hand).numpy(), rel=1e-3)


def test_what_is_said_of_probes_is_not_counted_as_training() -> None:
    model, said = made("crossearth_gate")
    tiles, _, _ = probes(said)
    for probe in step_of(model, said, tiles).probes(4):
        probe.backward()
    assert said.record() == {}


def test_the_teacher_follows_the_mask_and_nothing_else(tmp_path: Path) -> None:
    model = build("fishertune", **SMALL["fishertune"])
    said = objective(model)
    before = {name: parameter.detach().clone() for name, parameter in model.trainable_parameters()}
    target: Any = ProbeTiles(One("source"), One("target"), lambda: True)  # type: ignore[arg-type]
    run(
        job(
            tmp_path,
            model=model,
            objective=said,
            open_batches=lambda _: Both(),
            open_probes=lambda _: target,
        )
    )
    method: Any = model.method
    masks = dict(zip(method.candidates.names, method.masks(len(method.sizes) - 1), strict=True))
    moved = 0
    for name, parameter in said.teacher.model.trainable_parameters():
        if name.startswith("backbone."):
            mask = masks[name.removeprefix("backbone.")]
            assert torch.equal(parameter[~mask], before[name][~mask])
            moved += int((parameter[mask] != before[name][mask]).sum())
    assert moved > 0
    assert torch.equal(said.teacher.model.method.index, method.index)

"""Self-training by its parts, and with every method and head."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import build, sample
from test_contract import make, perturb
from torch import Tensor
from training_jobs import SMALL, Tiles, job, run, same, signalled, weights

from rsseg_cli.classes import IGNORE
from rsseg_cli.data.tiles.augment import Augment, tile_generators
from rsseg_cli.data.tiles.class_index import ClassIndex
from rsseg_cli.data.tiles.domain_batches import DomainBatch
from rsseg_cli.data.tiles.rare_class_sampling import RareClasses
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.errors import Interrupted
from rsseg_cli.find import names
from rsseg_cli.heads._criterion import Predictions
from rsseg_cli.heads.mask2former import MaskOutput
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training.classmix import class_mask, paste
from rsseg_cli.training.ema_teacher import EMATeacher
from rsseg_cli.training.model_selection import TargetStatistics, collapsed, distance, merit, rating
from rsseg_cli.training.pseudo_labels import by_confidence, by_entropy, normalised_entropy
from rsseg_cli.training.self_training import SelfTraining

METHODS = names("methods")
PLAIN = Augment.Config(scale=(1.0, 1.0))


class Both:
    """Item i: source tiles with labels, then target tiles, of which the first rows are nodata."""

    def __init__(self, sources: int = 1, targets: int = 1) -> None:
        self.sources = Tiles("source", 0, sources)
        self.targets = Tiles("target", 50_000, targets)

    def __getitem__(self, index: int) -> DomainBatch:
        one, other = self.sources[index], self.targets[index]
        there = torch.zeros_like(other.label)
        there[:, :4] = IGNORE
        return DomainBatch(
            torch.cat((one.image, other.image)),
            torch.cat((one.label, there)),
            seeds=one.seeds + other.seeds,
            sources=len(one.image),
        )


def objective(model: Segmenter, **settings: Any) -> SelfTraining:
    config = SelfTraining.Config.model_validate(
        {"warmup_fraction": 0.0, "threshold": 0.4} | settings
    )
    return SelfTraining(config, model, PLAIN, tile=32, steps=5)


def learn(made: SelfTraining, model: Segmenter, step: int, batch: Batch | None = None) -> float:
    torch.manual_seed(step)
    terms = made(model, batch or Both()[step])
    loss = torch.stack(list(terms.values())).sum()
    torch.autograd.backward(loss)
    with torch.no_grad():
        for _, parameter in model.trainable_parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
    model.zero_grad()
    made.after_step(model, step)
    return float(loss.detach())


# --- every method, both heads ----------------------------------------------------------------
@pytest.mark.parametrize("head", names("heads"))
@pytest.mark.parametrize("method", METHODS)
def test_a_few_steps_with_every_method_and_head(method: str, head: str) -> None:
    model = make(method, head).train()
    made = objective(model, weight="const")
    for step in range(2 if head == "linear" else 1):
        assert math.isfinite(learn(made, model, step, Both(2, 2)[step]))
    record = made.record()["teacher"]
    assert isinstance(record, dict)
    assert 0 <= record["coverage"] <= 1 / 3 + 1  # type: ignore[operator]
    assert made.record() == {}


@pytest.mark.parametrize("method", METHODS)
def test_the_teacher_owns_what_is_tuned_and_nothing_else(method: str) -> None:
    student = make(method)
    perturb(student)
    teacher = EMATeacher(student, 0.99)
    ours = {id(parameter) for parameter in student.parameters()}
    own = [p for p in teacher.model.parameters() if id(p) not in ours]
    assert sum(p.numel() for p in own) == sum(p.numel() for _, p in student.trainable_parameters())
    assert not any(p.requires_grad for p in teacher.model.parameters())
    image, _ = sample(3)
    before = teacher.probabilities(image)
    perturb(student)
    assert torch.equal(teacher.probabilities(image), before)


@pytest.mark.parametrize("method", METHODS)
def test_a_state_is_restored_to_the_bit(method: str) -> None:
    model = make(method).train()
    made = objective(model)
    for step in range(2):
        learn(made, model, step)
    other = make(method, seed=4)
    other.load_adapter_state(model.adapter_state())
    again = objective(other)
    again.restore({name: tensor.clone() for name, tensor in made.state().items()})
    image, _ = sample(8)
    assert again.done == made.done == 2
    assert torch.equal(again.teacher.probabilities(image), made.teacher.probabilities(image))


# --- teacher ---------------------------------------------------------------------------------
def test_the_average_follows_the_published_schedule() -> None:
    student = build("lora", rank=2)
    teacher = EMATeacher(student, 0.75)
    name, parameter = next(iter(student.trainable_parameters()))
    expected = torch.zeros_like(parameter)
    for step in range(8):
        with torch.no_grad():
            parameter.copy_(torch.randn_like(parameter))
        teacher.update(step)
        keep = min(1 - 1 / (step + 1), 0.75)
        expected = keep * expected + (1 - keep) * parameter
    assert torch.allclose(dict(teacher.model.trainable_parameters())[name], expected, atol=1e-6)


def test_open_modules_are_the_students() -> None:
    settings = SMALL["crossearth_gate"] | {"unselected": "bypass"}
    student = build("crossearth_gate", **settings)
    teacher = EMATeacher(student, 0.99)
    method: Any = student.method
    method.active.zero_()
    method._train_only(method.active)
    teacher.update(0)
    buffers = dict(teacher.model.method.named_buffers())
    assert not buffers["active"].any()
    opened = [tensor for name, tensor in buffers.items() if name.endswith(".open")]
    assert opened
    assert not torch.stack(opened).any()


def test_chosen_elements_are_the_students() -> None:
    student = build("fishertune")
    teacher = EMATeacher(student, 0.99)
    method: Any = student.method
    method.index = torch.arange(7, dtype=torch.int32)
    teacher.update(0)
    assert torch.equal(teacher.model.method.index, method.index)
    method.index[0] = 5
    assert teacher.model.method.index[0] == 0


# --- mixing ----------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_exactly_half_the_classes_are_pasted_whole(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    label = torch.randint(count, (6, 24, 24), generator=generator)
    label[:, :3] = IGNORE
    mask = class_mask(label, 7, tile_generators(range(6), label.device))
    seen = set()
    for tile, chosen in zip(label, mask, strict=True):
        classes = set(tile[chosen].tolist())
        assert len(classes) == math.ceil(count / 2)
        assert IGNORE not in classes
        assert all(bool(chosen[tile == one].all()) for one in classes)
        seen.add(frozenset(classes))
    assert count < 2 or len(seen) > 1  # each tile draws its own


def test_pixels_and_labels_stay_in_step() -> None:
    label = torch.arange(4).repeat_interleave(16).view(1, 8, 8)
    other = torch.full((1, 8, 8), 6)
    image, mixed = paste(
        class_mask(label, 5, tile_generators(range(len(label)), label.device)),
        (label[:, None].float(), label),
        (other[:, None].float(), other),
    )
    assert torch.equal(image[:, 0].long(), mixed)
    assert set(mixed.unique().tolist()) & {0, 1, 2, 3}


def test_nothing_is_pasted_of_a_tile_without_labels() -> None:
    label = torch.full((2, 8, 8), IGNORE)
    assert not class_mask(label, 5, tile_generators(range(len(label)), label.device)).any()


# --- pseudo-labels ---------------------------------------------------------------------------
def test_pixels_without_image_are_never_labelled() -> None:
    probabilities = torch.rand(2, 3, 16, 16).softmax(1)
    there = torch.rand(2, 16, 16) > 0.4
    for found in (by_confidence(probabilities, there, 0.0), by_entropy(probabilities, there, 1.0)):
        assert (found.label[~there] == IGNORE).all()
        assert not found.sure[~there].any()
        assert (found.label[there] == probabilities.argmax(1)[there]).all()
        assert (found.sure_only()[~found.sure] == IGNORE).all()
    assert (by_confidence(probabilities, there, 0.0).coverage == 1).all()
    empty = by_confidence(probabilities, torch.zeros_like(there), 0.5)
    assert empty.coverage.tolist() == [0, 0]


def test_entropy_lets_through_the_same_share_of_every_class() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 64, 64, generator=generator)
    logits[:, 0] += 1
    probabilities = (logits * torch.tensor([4.0, 1.0, 1.0]).view(1, 3, 1, 1)).softmax(1)
    found = by_entropy(probabilities, torch.ones(2, 64, 64, dtype=torch.bool), 0.5)
    for index in range(3):
        of_class = found.label == index
        assert found.sure[of_class].float().mean() == pytest.approx(0.5, abs=0.12)
        entropy = normalised_entropy(probabilities)
        assert entropy[of_class & found.sure].max() <= entropy[of_class & ~found.sure].min()


def test_entropy_is_a_share_of_its_bound() -> None:
    even = torch.full((1, 5, 1, 1), 0.2)
    assert normalised_entropy(even).item() == pytest.approx(1.0)
    assert normalised_entropy(torch.eye(5).view(5, 5, 1, 1)).abs().max() == 0


def test_the_threshold_can_be_reached_with_the_mask_head() -> None:
    # Three queries, each sure of its class and of every pixel that it claims.
    pixels = torch.full((1, 3, 4, 4), -9.0)
    pixels[:, 0, :2], pixels[:, 1, 2:] = 9.0, 9.0
    classes = torch.full((1, 3, 4), -9.0)
    classes[0, range(3), range(3)] = 9.0
    said = Predictions(classes[None], torch.eye(3)[None, None], pixels)
    probabilities = MaskOutput((16, 16), said).probabilities()
    found = by_confidence(probabilities, torch.ones(1, 16, 16, dtype=torch.bool), 0.9)
    assert found.coverage.item() > 0.7
    assert found.label[0, 0, 0] == 0
    assert found.label[0, -1, 0] == 1


# --- the objective ---------------------------------------------------------------------------
class Spy:
    """Stands in for the student: keeps what it is shown."""

    def __init__(self, model: Segmenter) -> None:
        self.model, self.labels, self.groups = model, torch.empty(0), [0]

    def __call__(
        self, image: Tensor, label: Tensor, groups: list[int], local_groups: int
    ) -> dict[str, Tensor]:
        self.image, self.labels, self.groups = image, label, groups
        return self.model(image, label, groups=groups, local_groups=local_groups)  # type: ignore[no-any-return]

    def standardise(self, raw: Tensor) -> Tensor:
        return self.model.standardise(raw)


def test_ignored_rows_of_the_target_get_source_or_nothing() -> None:
    model = build("frozen").train()
    made, spy = objective(model, weight="const"), Spy(model)
    batch = Both(2, 2)[0]
    batch.label[:2] = IGNORE  # nothing to paste
    made(spy, batch)  # type: ignore[arg-type]
    target = spy.labels[2:]
    assert ((target == IGNORE).sum((1, 2)) == 4 * 32).all()
    assert spy.groups == [2, 2]


def test_weights_of_the_target() -> None:
    model = build("frozen").train()
    batch = Both(2, 2)[0]
    terms = {}
    for weight in ("const", "image", "pixel"):
        for threshold in (0.0, 1.0):
            torch.manual_seed(0)
            made = objective(model, weight=weight, threshold=threshold, target_weight=0.5)
            terms[weight, threshold] = made(model, batch)["target cross_entropy"].item()
    assert terms["const", 0.0] == terms["const", 1.0] > 0
    # All pixels are sure: each tile counts whole. Means of tiles and of pixels differ a little.
    assert terms["image", 0.0] == pytest.approx(terms["const", 0.0], rel=0.1)
    assert terms["image", 1.0] == 0
    assert terms["pixel", 0.0] == terms["const", 0.0]
    assert terms["pixel", 1.0] != terms["const", 1.0]


def test_before_the_start_only_the_source_is_learnt() -> None:
    model = build("frozen").train()
    made = objective(model, warmup_fraction=0.4)
    assert set(made(model, Both()[0])) == {"source cross_entropy"}
    for step in range(2):
        made.after_step(model, step)
    assert set(made(model, Both()[0])) == {"source cross_entropy", "target cross_entropy"}


def test_groups_of_a_batch_sum_to_its_mean() -> None:
    model = build("full", head="linear").train()
    image, label = sample(0, 4)
    whole = model(image, label)["cross_entropy"]
    parts = model(image, label, groups=[1, 3])["cross_entropy"]
    assert parts.shape == (2,)
    assert (parts[0] + 3 * parts[1]).item() / 4 == pytest.approx(whole.item(), rel=1e-5)


def test_without_a_source_the_target_alone_is_learnt() -> None:
    model = build("frozen").train()
    made = objective(model)
    batch = Both(1, 2)[0]
    alone = DomainBatch(batch.image[1:], batch.label[1:], seeds=batch.seeds[1:], sources=0)
    terms = made(model, alone)
    assert all(name.startswith("target") for name in terms)
    assert torch.stack(list(terms.values())).sum().isfinite()


# --- the loop --------------------------------------------------------------------------------
def work(folder: Path, method: str, happens: Any = None) -> Any:
    model = build(method, **SMALL.get(method, {}))
    made = objective(model, warmup_fraction=0.4)
    if happens is not None:
        follow = made.after_step

        def after_step(student: Segmenter, step: int) -> None:
            follow(student, step)
            if step == 2:
                happens(torch.zeros(()))

        made.after_step = after_step  # type: ignore[method-assign]
    probes = {"open_probes": lambda samples: Both(samples, 1)}
    return job(folder, model=model, objective=made, open_batches=lambda size: Both(), **probes)


@pytest.mark.parametrize("method", ["full", "crossearth_gate", "fishertune"])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, method: str) -> None:
    run(work(tmp_path / "whole", method))
    with pytest.raises(Interrupted, match="after step 3"):
        run(work(tmp_path / "parts", method, signalled(signal.SIGTERM)))
    run(work(tmp_path / "parts", method), resume=True)
    assert same(*(weights(tmp_path / name / "last.safetensors") for name in ("whole", "parts")))


def test_a_score_can_end_the_run(tmp_path: Path) -> None:
    said = [{"merit": 0.1}, {"merit": 0.5}, {"merit": -1.0, "stop": "astray"}]
    one = job(tmp_path, validate=lambda model: dict(said.pop(0)), validate_every=1)
    one.validate_start = True
    outcome = run(one)
    assert outcome.steps == 2
    assert outcome.best == {"merit": 0.5, "step": 1}
    assert outcome.last is not None
    assert outcome.last["stop"] == "astray"
    assert one.folder.finished
    assert [line["step"] for line in one.folder.records() if "val" in line] == [0, 1, 2]


# --- choice ----------------------------------------------------------------------------------
def look(*mean: float, entropy: float = 0.0) -> TargetStatistics:
    return TargetStatistics(list(mean), list(mean), entropy, 1.0)


def test_information_is_for_the_sure_and_various() -> None:
    assert look(0.25, 0.25, 0.25, 0.25).information == pytest.approx(1.0)
    assert look(1.0, 0.0, 0.0, 0.0).information == pytest.approx(0.0)
    assert look(0.5, 0.5, entropy=0.75).information == pytest.approx(0.25)
    assert rating(0.5, 0.80, 0.90) == pytest.approx(0.43)
    assert rating(0.5, 0.88, 0.90) == rating(0.5, None, None) == 0.5


def test_a_lucky_look_chooses_nothing() -> None:
    ratings = [0.5, 0.4, 0.9, 0.4, 0.7, 0.7, 0.7]
    merits = [merit(ratings[: index + 1]) for index in range(len(ratings))]
    assert merits[0] == 0.5
    assert merits[2] == pytest.approx(0.6)
    assert merits.index(max(merits)) == 6


def test_of_models_alike_the_last_counts() -> None:
    assert merit([0.770], 0.774) == 0.774
    assert merit([0.753], 0.774) == 0.753
    assert merit([0.780], 0.774) == 0.780


def test_shares_that_run_away_from_both() -> None:
    assert distance([0.5, 0.5], [1.0, 0.0]) == pytest.approx(0.5)
    start, source = [0.5, 0.5], [0.9, 0.1]
    assert not collapsed([0.95, 0.05], start, source, 0.3)  # as the source
    assert collapsed([0.95, 0.05], start, None, 0.3)
    assert collapsed([0.0, 1.0], start, source, 0.3)
    assert not collapsed([0.6, 0.4], start, source, 0.3)


def test_rare_classes_are_drawn_more_often() -> None:
    counts = np.array([900, 100, 0])
    positions = tuple(np.array([[index, 0, 0]], np.int32) for index in range(3))
    rare = RareClasses.of(ClassIndex(counts, positions), 0.5)
    expected = np.exp(np.array([0.1, 0.9]) / 0.5)
    assert rare.chances[:2] == pytest.approx(expected / expected.sum())
    assert rare.chances[2] == 0
    generator = np.random.default_rng(0)
    drawn = [rare.draw(generator)[0] for _ in range(400)]
    assert np.mean(np.array(drawn) == 1) == pytest.approx(rare.chances[1], abs=0.07)

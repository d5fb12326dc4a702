"""The loop: resuming is exact, the best model is kept, and errors are raised in time."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import build
from torch import Tensor
from torch.nn import Parameter
from training_jobs import Scores, Scripted, job, run, same, signalled, weights

from rsseg_cli.contract import Step
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.errors import Interrupted, RssegError
from rsseg_cli.find import names
from rsseg_cli.methods.frozen import Frozen
from rsseg_cli.methods.full import Full
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import checkpoint
from rsseg_cli.training.optimizer import Optimization
from rsseg_cli.training.run_folder import RunFolder


def without_time(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in ("images_per_s", "wait", "memory_mb")}


@pytest.mark.parametrize("method", names("methods"))
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, method: str) -> None:
    run(job(tmp_path / "whole", method))
    stopped = job(tmp_path / "parts", method, objective=Scripted(signalled(signal.SIGTERM), at=2))
    with pytest.raises(Interrupted, match="after step 3 of 5"):
        run(stopped)
    torch.manual_seed(99)
    run(job(tmp_path / "parts", method), resume=True)
    assert same(*(weights(tmp_path / name / "last.safetensors") for name in ("whole", "parts")))


def test_lines_of_steps_that_are_taken_again_go(tmp_path: Path) -> None:
    def die(loss: Tensor) -> Tensor:
        raise ConnectionError("the machine went away")

    common: dict[str, Any] = {"save_every": 2, "log_every": 1}
    with pytest.raises(ConnectionError):
        run(job(tmp_path, objective=Scripted(die, at=3), **common))
    assert [line["step"] for line in RunFolder(tmp_path).records()] == [1, 2, 3]
    with RunFolder(tmp_path).metrics.open("a") as stream:
        stream.write('{"step": 4, "lo')
    run(job(tmp_path, **common), resume=True)
    assert [line["step"] for line in RunFolder(tmp_path).records()] == [1, 2, 3, 4, 5]


def test_what_a_resumed_run_says_is_what_an_uninterrupted_one_says(tmp_path: Path) -> None:
    scores = (0.3, 0.5, 0.4, 0.2, 0.1)
    whole = job(tmp_path / "whole", validate=Scores(*scores), validate_every=1)
    once = run(whole)
    stop = Scripted(signalled(signal.SIGINT), at=2)
    stopped = job(
        tmp_path / "parts", validate=Scores(*scores), validate_every=1, save_every=2, objective=stop
    )
    with pytest.raises(Interrupted):
        run(stopped)
    resumed = job(tmp_path / "parts", validate=Scores(*scores[3:]), validate_every=1)
    twice = run(resumed, resume=True)
    assert once.best == twice.best == {"miou": 0.5, "step": 2}
    assert once.last == twice.last == {"miou": 0.1}
    lines = [[without_time(line) for line in one.folder.records()] for one in (whole, resumed)]
    steps = [[(line["step"], "val" in line) for line in of] for of in lines]
    assert steps[0] == steps[1]
    losses = [{line["step"]: line["loss"] for line in of if "loss" in line} for of in lines]
    assert losses[0][2] == losses[1][2]
    assert losses[0][5] == losses[1][5]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_run_to_resume(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stopped = job(tmp_path, objective=Scripted(signalled(number), at=1))
    with pytest.raises(Interrupted) as caught:
        run(stopped)
    assert caught.value.exit_code == 130
    assert "--resume" in caught.value.fix
    assert signal.getsignal(number) is before
    assert checkpoint.load_resume(tmp_path / "resume.pt")["step"] == 2
    assert not stopped.folder.finished


def test_a_signal_at_the_last_step_finishes_the_run(tmp_path: Path) -> None:
    last = job(tmp_path, objective=Scripted(signalled(signal.SIGINT), at=4))
    assert run(last).steps == 5
    assert last.folder.finished


def test_a_finished_run_leaves_models_and_metrics_only(tmp_path: Path) -> None:
    outcome = run(job(tmp_path, save_every=2))
    assert {path.name for path in tmp_path.iterdir()} == {
        "last.safetensors", "metrics.jsonl", "model.safetensors",
    }  # fmt: skip
    assert (outcome.best, outcome.last) == (None, None)
    assert outcome.steps == 5
    assert outcome.images_per_s > 0
    assert same(weights(tmp_path / "model.safetensors"), weights(tmp_path / "last.safetensors"))


def test_the_best_model_is_kept_beside_the_last(tmp_path: Path) -> None:
    work = job(tmp_path, validate=Scores(0.2, 0.9, None, 0.9, 0.5), validate_every=1)
    outcome = run(work)
    assert outcome.best == {"miou": 0.9, "step": 4}  # of equals the last
    assert outcome.last == {"miou": 0.5}
    (best, about), (last, final) = map(checkpoint.load_model, (work.folder.model, work.folder.last))
    assert (about["step"], about["score"]) == (4, {"miou": 0.9})
    assert (final["step"], final["score"]) == (5, {"miou": 0.5})
    assert not same(best, last)


def test_lines_of_the_metrics(tmp_path: Path) -> None:
    work = job(tmp_path, validate=Scores(0.1, 0.2), validate_every=3)
    run(work)
    lines = work.folder.records()
    assert [(line["step"], "val" in line) for line in lines] == [
        (2, False), (3, True), (4, False), (5, False), (5, True),
    ]  # fmt: skip
    first, loss = lines[0], lines[0]["loss"]
    keys = {"step", "loss", "losses", "lr", "images_per_s", "wait", "memory_mb", "method"}
    assert set(first) == keys
    assert isinstance(first["losses"], dict)
    assert loss == pytest.approx(sum(first["losses"].values()))  # type: ignore[arg-type]
    assert first["lr"] == pytest.approx(3e-3)  # the second step of two of warm-up


class Watched(Full):
    """Keeps the gradients of every update."""

    seen: list[list[Tensor]]
    watched: list[Parameter]

    def before_update(self, step: Step) -> None:
        self.seen.append([p.grad.clone() for p in self.watched if p.grad is not None])


def gradients(folder: Path, size: int, **changes: Any) -> list[list[Tensor]]:
    """Run three steps of four images, `size` to a pass, and give the gradients of each."""

    class Plain(Scripted):
        def __call__(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
            losses: dict[str, Tensor] = model(model.standardise(batch.image), batch.label)
            return losses

    model = build("full")
    model.method = method = Watched(Full.Config(), model.backbone)
    method.seen, method.watched = [], [parameter for _, parameter in model.trainable_parameters()]
    run(job(folder, model=model, objective=Plain(), batch=4, steps=3,
            optimization=Optimization(lr=1e-5), log_every=1, **changes))  # fmt: skip
    return method.seen


def test_two_passes_equal_one_of_twice_the_size(tmp_path: Path) -> None:
    once = gradients(tmp_path / "one", 4)
    twice = gradients(tmp_path / "two", 2, grad_accumulation=2)
    for one, two in zip(once, twice, strict=True):
        for whole, parts in zip(one, two, strict=True):
            assert torch.allclose(whole, parts, rtol=1e-3, atol=1e-5)
    lines = [RunFolder(tmp_path / name).records() for name in ("one", "two")]
    losses = [[line["loss"] for line in of] for of in lines]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


class Probing(Frozen):
    """Method that runs probes before every step and does not use them."""

    seen: list[float]

    def before_step(self, step: Step) -> None:
        self.seen = [probe.backward() for probe in step.probes(2, samples=3)]


def test_probes_leave_no_trace_in_the_training(tmp_path: Path) -> None:
    run(job(tmp_path / "plain", "frozen"))
    model = build("frozen")
    model.method = method = Probing(Frozen.Config(), model.backbone)
    run(job(tmp_path / "probing", model=model))
    assert len(set(method.seen)) == 2
    assert same(*(weights(tmp_path / name / "last.safetensors") for name in ("plain", "probing")))


@pytest.mark.parametrize("noticed", ["before validating", "before saving"])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, noticed: str) -> None:
    broken = job(
        tmp_path,
        objective=Scripted(lambda loss: loss * math.nan, at=3),
        save_every=2,
        log_every=100,
        validate=Scores(0.5, 0.6),
        validate_every=2,
        steps=8,
    )
    if noticed == "before saving":
        broken.validate = None
        broken.folder.save_model(broken.folder.model, broken.model, None, 2)
    with pytest.raises(RssegError, match="not a finite number at step 4") as caught:
        run(broken)
    assert "lr" in caught.value.fix
    assert checkpoint.load_resume(tmp_path / "resume.pt")["step"] == 2
    good, about = checkpoint.load_model(tmp_path / "model.safetensors")
    assert about["step"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in good.values())
    assert not (tmp_path / "last.safetensors").exists()
    healed = job(tmp_path, steps=8, log_every=100, validate=Scores(0.7), validate_every=8)
    assert run(healed, resume=True).last == {"miou": 0.7}


def test_a_loss_that_is_no_number_at_the_last_step(tmp_path: Path) -> None:
    broken = job(tmp_path, objective=Scripted(lambda loss: loss / 0, at=4), save_every=2)
    with pytest.raises(RssegError, match="step 5"):
        run(broken)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "resume.pt"}
    assert checkpoint.load_resume(tmp_path / "resume.pt")["step"] == 4


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_and_resumes_exactly(tmp_path: Path, precision: str) -> None:
    run(job(tmp_path / "whole", precision=precision))
    stop = Scripted(signalled(signal.SIGTERM), at=2)
    with pytest.raises(Interrupted):
        run(job(tmp_path / "parts", precision=precision, objective=stop))
    run(job(tmp_path / "parts", precision=precision), resume=True)
    whole, parts = (weights(tmp_path / n / "last.safetensors") for n in ("whole", "parts"))
    assert same(whole, parts)
    assert all(tensor.dtype != torch.float16 for tensor in whole.values())
    assert not same(whole, {n: t.detach() for n, t in build("full").adapter_state().items()})


def test_losses_fall(tmp_path: Path) -> None:
    optimization = Optimization(lr=3e-3)
    work = job(tmp_path, steps=30, log_every=10, optimization=optimization)
    run(work)
    losses = [float(str(line["loss"])) for line in work.folder.records()]
    assert losses[0] > losses[1] > losses[2]


def test_recomputing_gives_the_same_model(tmp_path: Path) -> None:
    run(job(tmp_path / "plain", "lora", steps=3))
    run(job(tmp_path / "again", "lora", steps=3, activation_checkpointing=True))
    plain, again = (weights(tmp_path / n / "last.safetensors") for n in ("plain", "again"))
    for name, tensor in plain.items():
        assert torch.allclose(tensor.float(), again[name].float(), atol=1e-5), name


def test_reading_ahead_changes_nothing(tmp_path: Path) -> None:
    run(job(tmp_path / "here"))
    run(job(tmp_path / "ahead", num_workers=3))
    assert same(*(weights(tmp_path / name / "last.safetensors") for name in ("here", "ahead")))


def test_a_full_disk_is_said_and_the_last_state_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, states = torch.save, []

    def save(state: object, stream: object) -> None:
        states.append(state)
        if len(states) > 1:
            raise RuntimeError("unexpected pos 64 vs 0")  # as torch words a full disk
        saved(state, stream)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RssegError, match="disk is full"):
        run(job(tmp_path, save_every=1))
    assert checkpoint.load_resume(tmp_path / "resume.pt")["step"] == 1


def test_a_state_of_another_device_is_taken(tmp_path: Path) -> None:
    run(job(tmp_path / "whole"))
    stopped = job(tmp_path / "parts", objective=Scripted(signalled(signal.SIGTERM), at=2))
    with pytest.raises(Interrupted):
        run(stopped)
    path = tmp_path / "parts" / "resume.pt"
    state = checkpoint.load_resume(path)
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = True  # as a GPU writes it
    checkpoint.save_resume(path, state)
    run(job(tmp_path / "parts"), resume=True)
    assert same(*(weights(tmp_path / name / "last.safetensors") for name in ("whole", "parts")))


def test_a_state_without_a_scale_is_taken_where_losses_are_scaled(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(job(tmp_path, objective=Scripted(signalled(signal.SIGTERM), at=2)))
    assert run(job(tmp_path, precision="fp16"), resume=True).steps == 5

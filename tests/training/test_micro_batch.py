"""Out of memory: one probe before the first step finds the micro-batch and changes nothing."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import build
from test_self_training import Both, objective
from torch import Tensor, nn
from training_jobs import SMALL, Scripted, Tiles, job, run, same, signalled, weights

from rsseg_cli import distributed
from rsseg_cli.contract import Step
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.errors import Interrupted, RssegError
from rsseg_cli.find import names
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import checkpoint, loop, optimizer
from rsseg_cli.training.micro_batch import (
    divisor,
    find_micro_batch,
    is_out_of_memory,
    memory_is_limited,
    probe_update,
)
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.run_folder import RunFolder

CPU = torch.device("cpu")
CPU_SAYS = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
)
ERRORS = [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_SAYS), MemoryError()]


class Tight(Scripted):
    """Has memory for so many images; it runs out when the forward pass is through."""

    def __init__(self, fits: int = 1, error: Exception = ERRORS[0], **scripted: Any) -> None:
        super().__init__(**scripted)
        self.fits, self.error = fits, error
        self.sizes: list[int] = []

    def __call__(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        losses = super().__call__(model, batch)
        if "train" in batch.names:
            self.sizes.append(batch.size)
            if batch.size > self.fits:
                raise self.error
        return losses


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "memory_is_limited", lambda device: True)


def losses(folder: Path) -> list[Any]:
    return [line["loss"] for line in RunFolder(folder).records()]


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("method", names("methods"))
def test_the_micro_batch_found_is_as_if_configured(tmp_path: Path, method: str) -> None:
    steps = 1 if method == "weft" else 3  # its pyramid takes a second per pass
    common: dict[str, Any] = {"batch": 4, "steps": steps, "log_every": 1}
    tight = Tight()
    run(job(tmp_path / "tight", method, objective=tight, **common))
    assert tight.sizes == [4, 2, 1] + [1] * 4 * steps
    run(job(tmp_path / "wide", method, grad_accumulation=4, **common))
    assert same(*(weights(tmp_path / name / "last.safetensors") for name in ("tight", "wide")))
    assert losses(tmp_path / "tight") == losses(tmp_path / "wide")


@pytest.mark.parametrize("method", names("methods"))
def test_a_probe_takes_itself_back(method: str) -> None:
    model = build(method, **SMALL.get(method, {}))
    with torch.no_grad():
        for _, parameter in model.trainable_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    adam = optimizer.build(optimizer.Optimization(lr=1.0, weight_decay=1.0), model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    state, stepped = torch.get_rng_state(), []
    adam.register_step_post_hook(lambda *all: stepped.append(len(adam.state)))
    probe_update(model, Scripted(), Tiles()[0], adam, Precision.choose("fp32", CPU))
    assert stepped[0] > 0
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert tensor is tensors[name]
        assert torch.allclose(tensor, before[name], 0, 0, equal_nan=True), name
    assert not adam.state
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_buffers_that_are_replaced_come_back() -> None:
    class Replacing(Scripted):
        def __call__(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
            model.head.used = torch.ones(5)
            raise ERRORS[0]

    model = build("frozen")
    model.head.register_buffer("used", torch.zeros(2))
    adam = optimizer.build(optimizer.Optimization(), model)
    with pytest.raises(torch.OutOfMemoryError):
        probe_update(model, Replacing(), Tiles()[0], adam, Precision.choose("fp32", CPU))
    assert torch.equal(model.head.used, torch.zeros(2))


def test_no_step_is_probed_where_memory_has_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {resource.RLIMIT_AS: resource.RLIM_INFINITY}
    monkeypatch.setattr(
        resource, "getrlimit", lambda kind: (limits.get(kind, resource.RLIM_INFINITY), 0)
    )
    assert not memory_is_limited(CPU)
    objective = Tight(fits=2)
    run(job(tmp_path, objective=objective))
    assert objective.sizes == [2] * 5
    limits[resource.RLIMIT_AS] = 2**33
    assert memory_is_limited(CPU)
    assert memory_is_limited(torch.device("cuda"))


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "python"])
def test_a_model_that_never_fits_is_refused(tmp_path: Path, error: Exception) -> None:
    objective = Tight(fits=0, error=error)
    with pytest.raises(RssegError, match="out of memory") as caught:
        run(job(tmp_path, objective=objective))
    assert objective.sizes == [2, 1]
    for advice in ("--batch", "--tile", "training.activation_checkpointing", "--precision"):
        assert advice in caught.value.fix


@pytest.mark.usefixtures("limited")
def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(job(tmp_path, objective=Tight(error=RuntimeError("shapes differ"))))


@pytest.mark.usefixtures("limited")
def test_the_configured_micro_batch_is_the_largest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objective = Tight(fits=4)
    work = job(tmp_path, objective=objective, batch=4, grad_accumulation=2)
    loop.train(work, loop.Progress(5))
    assert set(objective.sizes) == {2}
    assert "micro-batches of 2 tiles, 2 per step" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: out of memory"), MemoryError()])
def test_memory_that_runs_out_while_tiles_are_read(tmp_path: Path, error: Exception) -> None:
    class Starved(Tiles):
        def __getitem__(self, index: int) -> Batch:  # pinning, for one, takes memory
            raise error

    with pytest.raises(RssegError, match="out of memory while reading tiles") as caught:
        run(job(tmp_path, open_batches=lambda size: Starved()))
    assert caught.value.__cause__ is error
    assert "training.num_workers" in caught.value.where


@pytest.mark.usefixtures("limited")
def test_a_resumed_run_keeps_its_micro_batch_and_does_not_probe(tmp_path: Path) -> None:
    def tight(name: str, **changes: Any) -> Any:
        return job(tmp_path / name, batch=4, **changes)

    run(tight("whole", objective=Tight(fits=2)))
    stopped = Tight(fits=2, happens=signalled(signal.SIGTERM), at=5)
    with pytest.raises(Interrupted):
        run(tight("parts", objective=stopped))
    again = Tight(fits=2)
    run(tight("parts", objective=again), resume=True)
    assert again.sizes[0] == 2
    assert len(stopped.sizes) + len(again.sizes) == 2 + 5 * 2  # two probes, one of which fails
    assert same(*(weights(tmp_path / name / "last.safetensors") for name in ("whole", "parts")))


@pytest.mark.usefixtures("limited")
def test_a_run_resumed_with_other_micro_batches_probes_again(tmp_path: Path) -> None:
    stopped = Tight(fits=4, happens=signalled(signal.SIGTERM), at=3)
    with pytest.raises(Interrupted):
        run(job(tmp_path, batch=4, objective=stopped))
    again = Tight(fits=4)
    run(job(tmp_path, batch=4, grad_accumulation=2, objective=again), resume=True)
    assert again.sizes == [2] + [2] * 2 * 2  # a probe, and two steps


def test_memory_that_runs_out_in_a_later_step_names_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job(tmp_path, save_every=1)

    def full(self: nn.Module, step: Step) -> None:
        if step.index == 2:
            raise ERRORS[0]

    monkeypatch.setattr(type(work.model.method), "before_update", full)
    with pytest.raises(RssegError, match="out of memory: CUDA") as caught:
        run(work)
    assert "training.grad_accumulation" in caught.value.fix
    assert checkpoint.load_resume(tmp_path / "resume.pt")["step"] == 2


@pytest.mark.usefixtures("limited")
def test_adapt_probes_pseudo_labels_before_they_are_due(tmp_path: Path) -> None:
    """Micro-batches keep both domains, and the statistics start with the training."""
    model = build("lora")
    learner = objective(model, warmup_fraction=0.4)
    labelled: list[int] = []
    teach = learner.teacher.probabilities

    def probabilities(image: Tensor) -> Tensor:
        labelled.append(len(image))
        if len(image) > 1:
            raise ERRORS[0]
        return teach(image)

    learner.teacher.probabilities = probabilities  # type: ignore[method-assign]
    work = job(
        tmp_path, model=model, objective=learner, batch=4, multiple=2, log_every=1,
        open_batches=lambda size: Both(size // 2, size // 2),
    )  # fmt: skip
    run(work)
    assert labelled == [2, 1] + [1] * 2 * 3  # two probes, and three steps after the start
    lines = work.folder.records()
    assert ["teacher" in line for line in lines] == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("tiles", "fits", "multiple", "tried"),
    [
        (4, 4, 1, [4]),
        (4, 3, 1, [4, 2]),
        (6, 2, 1, [6, 3, 1]),
        (12, 3, 2, [12, 6, 2]),
        (5, 5, 2, [5]),
        (5, 1, 1, [5, 1]),
    ],
)
def test_sizes_are_halved_and_divide_the_batch(
    tiles: int, fits: int, multiple: int, tried: list[int]
) -> None:
    sizes: list[int] = []

    def probe(size: int) -> None:
        sizes.append(size)
        if size > fits:
            raise ERRORS[0]

    assert find_micro_batch(tiles, multiple, probe) == tried[-1]
    assert sizes == tried


def test_both_domains_need_a_tile_each() -> None:
    def probe(size: int) -> None:
        raise ERRORS[0]

    with pytest.raises(RssegError, match="out of memory"):
        find_micro_batch(4, 2, probe)
    assert divisor(4, 1, 2) is None


def test_all_processes_take_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [True, False]  # another process fails once
    monkeypatch.setattr(distributed, "any_rank", lambda failed: answers.pop(0) or failed)
    assert find_micro_batch(8, 1, lambda size: None) == 4


def test_what_the_host_really_raises_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))

"""Memory that runs out: one retry in smaller pieces, to the bit as if configured so."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import build
from jobs import Scripted, Tiles, job, run, same, signalled, weights
from torch import Tensor, nn

from rsseg_cli.data.tiles.augment import Augment
from rsseg_cli.data.tiles.domain_batches import DomainBatch
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.errors import Interrupted, RssegError, RssegWarning
from rsseg_cli.find import names
from rsseg_cli.methods.frozen import Frozen
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.step import Step
from rsseg_cli.training import checkpoint
from rsseg_cli.training.micro_batch import Buffers, Room, out_of_memory
from rsseg_cli.training.run_folder import RunFolder

CPU_SAYS = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
)
ERRORS = [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_SAYS), MemoryError()]


class Tight(Scripted):
    """Has memory for so many images of a kind; it runs out when the forward pass is through."""

    def __init__(
        self, fits: int = 1, first: int = 0, kind: str = "train", error: Exception = ERRORS[0],
        **scripted: Any,
    ) -> None:  # fmt: skip
        super().__init__(**scripted)
        self.fits, self.first, self.kind, self.error = fits, first, kind, error
        self.calls = 0

    def __call__(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        losses = super().__call__(model, batch)
        if self.kind in batch.names:
            self.calls += 1
            if self.calls > self.first and batch.size > self.fits:
                raise self.error
        return losses


def losses(folder: Path) -> list[Any]:
    return [line["loss"] for line in RunFolder(folder).records()]


@pytest.mark.parametrize("method", names("methods"))
def test_a_retry_is_what_more_passes_would_have_been(tmp_path: Path, method: str) -> None:
    steps = 1 if method == "weft" else 3  # its pyramid takes a second per pass
    common: dict[str, Any] = {"batch": 4, "steps": steps, "log_every": 1}
    # Memory runs out in the second pass: the gradients of the first one have to go, too.
    tight = job(tmp_path / "tight", method, accumulate=2, objective=Tight(first=1), **common)
    with pytest.warns(RssegWarning, match="from now on 1 image at a time, not 2"):
        run(tight)
    run(job(tmp_path / "wide", method, accumulate=4, batches=Tiles(count=1), **common))
    assert same(*(weights(tmp_path / name / "last.safetensors") for name in ("tight", "wide")))
    assert losses(tmp_path / "tight") == losses(tmp_path / "wide")


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "python"])
def test_it_is_tried_once(tmp_path: Path, error: Exception) -> None:
    objective = Tight(fits=0, error=error)
    with (
        pytest.warns(RssegWarning, match="1 image at"),
        pytest.raises(RssegError, match="memory ran out, with smaller passes, too") as caught,
    ):
        run(job(tmp_path, objective=objective))
    assert objective.calls == 2
    assert caught.value.__cause__ is error
    for advice in ("accumulate", "--batch", "--tile", "recompute", "--precision"):
        assert advice in caught.value.fix


def test_what_cannot_be_cut_is_not_tried_again(tmp_path: Path) -> None:
    objective = Tight(fits=0)
    with pytest.raises(RssegError, match="memory ran out: CUDA out of memory"):
        run(job(tmp_path, batch=1, batches=Tiles(count=1), objective=objective))
    assert objective.calls == 1


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(job(tmp_path, objective=Tight(error=RuntimeError("shapes differ"))))


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: out of memory"), MemoryError()])
def test_readers_without_memory_are_no_matter_of_passes(tmp_path: Path, error: Exception) -> None:
    class Starved(Tiles):
        def __getitem__(self, index: int) -> Batch:  # pinning, for one, takes memory
            raise error

    with pytest.raises(RssegError, match="no memory is left to read tiles with") as caught:
        run(job(tmp_path, batches=Starved()))
    assert caught.value.__cause__ is error


def test_later_steps_and_resumed_runs_stay_small(tmp_path: Path) -> None:
    def tight(name: str, **changes: Any) -> Any:
        return job(tmp_path / name, batch=2, save_every=1, **changes)

    whole = Tight(first=1)  # steps 0 whole, 1 fails, 1 to 4 in two pieces
    with pytest.warns(RssegWarning):
        run(tight("whole", objective=whole))
    assert whole.calls == 1 + 1 + 4 * 2
    stopped = Tight(first=1, happens=signalled(signal.SIGTERM), at=3)
    with pytest.warns(RssegWarning), pytest.raises(Interrupted):
        run(tight("parts", objective=stopped))
    run(tight("parts", objective=Tight()), resume=True)
    assert same(*(weights(tmp_path / name / "last.safetensors") for name in ("whole", "parts")))


def test_memory_that_runs_out_in_an_update_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job(tmp_path, save_every=1)

    def full(self: nn.Module, step: Step) -> None:
        if step.index == 2:
            raise ERRORS[0]

    monkeypatch.setattr(type(work.model.method), "before_update", full)
    with pytest.raises(RssegError, match="memory ran out"):
        run(work)
    assert checkpoint.load_resume(tmp_path / "resume.pt")["step"] == 2


class Probing(Frozen):
    """Looks at one probe of four images per step."""

    seen: list[tuple[float, list[Tensor]]]
    began: int

    def before_step(self, step: Step) -> None:
        self.began += 1
        for probe in step.probes(1, samples=4):
            loss = probe.backward()
            found = [p.grad.clone() for p in self.head if p.grad is not None]
            self.seen.append((loss, found))


def probed(folder: Path, objective: Scripted) -> Probing:
    model = build("frozen")
    model.method = method = Probing(Frozen.Config(), model.backbone)
    method.seen, method.began, method.head = [], 0, list(model.head.parameters())
    still = dict.fromkeys(("gain", "offset", "band_gain", "band_offset"), 0.0)
    quiet = Augment.Config(scale=(1.0, 1.0), flips=False, turns=False, **still)
    objective.augment = Augment(quiet, tile=32)
    run(job(folder, model=model, objective=objective, steps=2))
    return method


def test_probes_are_cut_and_hooks_run_once(tmp_path: Path) -> None:
    plain = probed(tmp_path / "plain", Scripted())
    with pytest.warns(RssegWarning, match="2 images at a time, not 4"):
        cut = probed(tmp_path / "cut", Tight(fits=2, kind="probe"))
    assert plain.began == cut.began == 2
    for (loss, whole), (other, pieces) in zip(plain.seen, cut.seen, strict=True):
        assert other == pytest.approx(loss, rel=1e-5)
        for one, two in zip(whole, pieces, strict=True):
            assert torch.allclose(one, two, rtol=1e-3, atol=1e-6)
    assert same(*(weights(tmp_path / name / "last.safetensors") for name in ("plain", "cut")))


def test_other_processes_are_not_kept_waiting() -> None:
    def work() -> None:
        raise ERRORS[0]

    with pytest.raises(RssegError, match="memory ran out"):
        Room(retry=False).run(work, lambda: None, lambda: Tiles(count=4)[0])


@pytest.mark.parametrize(
    ("tiles", "fits", "sizes"),
    [
        (4, None, [4]),
        (4, 4, [4]),
        (4, 3, [2, 2]),
        (6, 2, [2, 2, 2]),
        (6, 4, [3, 3]),
        (5, 2, [1] * 5),
    ],
)
def test_pieces_are_equal_and_as_few_as_fit(tiles: int, fits: int | None, sizes: list[int]) -> None:
    batch = Tiles(count=tiles)[0]
    pieces = Room(fits).cut(batch)
    assert [piece.size for piece in pieces] == sizes
    assert torch.equal(torch.cat([piece.image for piece in pieces]), batch.image)
    assert torch.equal(torch.cat([piece.label for piece in pieces]), batch.label)


def test_pieces_hold_both_domains() -> None:
    image = torch.arange(6.0)[:, None, None, None]
    batch = DomainBatch(image, image[:, 0], tuple("abcdef"), tuple("sssttt"), sources=3)
    pieces = Room(2).cut(batch)
    assert [piece.image.flatten().tolist() for piece in pieces] == [[0, 3], [1, 4], [2, 5]]
    assert [(piece.sources, piece.names[1], piece.domains) for piece in pieces] == [
        (1, "d", ("s", "t")), (1, "e", ("s", "t")), (1, "f", ("s", "t")),
    ]  # fmt: skip
    uneven = DomainBatch(image[:5], image[:5, 0], sources=3)
    assert uneven.common == 1


def test_what_the_host_really_says_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))


def test_buffers_come_back() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    model.register_buffer("used", torch.zeros(2))
    model.register_buffer("chosen", torch.zeros(2**17))
    kept = Buffers(model)
    model.train()(torch.randn(8, 3))
    model.used = torch.ones(5)
    kept.restore()
    norm = model[0]
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert int(norm.num_batches_tracked) == 0
    assert torch.equal(model.used, torch.zeros(2))
    model(torch.randn(8, 3))
    mean = norm.running_mean.clone()
    kept.keep()
    model(torch.randn(8, 3))
    kept.restore()
    assert torch.equal(norm.running_mean, mean)

"""A run ends before its time is up, with a state from which it goes on exactly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from runs import SMALL, rsseg
from torch import Tensor
from training_jobs import Scores, Scripted, job, run, same, weights

from rsseg_cli.errors import Interrupted, RssegError
from rsseg_cli.training import checkpoint
from rsseg_cli.training.deadline import SLOW_DISK, Deadline
from rsseg_cli.training.run_folder import RunFolder


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def takes(self, seconds: float) -> Any:
        def happens(loss: Tensor) -> Tensor:
            self.seconds += seconds
            return loss

        return happens


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("8h", 28_800), ("30m", 1800), ("90s", 90), ("1h30m", 5400), ("2d", 172_800),
        ("08:00:00", 28_800), ("0:00:05", 5), ("1-02:03:04", 93_784), (" 8h ", 28_800),
    ],
)  # fmt: skip
def test_amounts_of_time(monkeypatch: pytest.MonkeyPatch, text: str, seconds: int) -> None:
    made: list[float] = []
    monkeypatch.setattr(Deadline, "__init__", lambda self, seconds: made.append(seconds))
    Deadline.parse(text)
    assert made == [seconds]


@pytest.mark.parametrize(
    "text", ["", "8", "0h", "h", "8 hours", "30:00", "-8h", "1.5h", "8h30", "0:0:5"]
)
def test_what_is_no_amount_of_time(text: str) -> None:
    with pytest.raises(RssegError, match="not a duration") as caught:
        Deadline.parse(text)
    assert (caught.value.where, "1h30m" in caught.value.fix) == ("--max-time", True)


def test_time_for_what_comes_is_left() -> None:
    clock = Clock()
    deadline = Deadline(1000.0, now=clock)  # 30 s stay unused
    for seconds in (4.0, 2.0):
        with deadline.timing("step"):
            clock.seconds += seconds
    with deadline.timing("step", usual=False):
        clock.seconds += 500.0
    with deadline.timing("validation"):
        clock.seconds += 100.0
    deadline.expect("save", 20.0)
    assert 1000 - clock.seconds == 394.0
    assert not deadline.near("step", "validation", "save")  # 1.5 * 124 + 30 = 216
    clock.seconds = 1000 - 215.0
    assert deadline.near("step", "validation", "save")
    assert not deadline.near("step", "save")  # 1.5 * 24 + 30 = 66
    clock.seconds = 1000 - 65.0
    assert deadline.near("step", "save")


def test_without_a_limit_it_is_never_near() -> None:
    deadline = Deadline.parse(None)
    deadline.expect("step", 1e9)
    assert not deadline.near("step", "save")
    assert math.isinf(deadline._ends)


def test_a_short_time_keeps_a_short_margin() -> None:
    clock = Clock()
    deadline = Deadline(20.0, now=clock)
    clock.seconds = 18.9
    assert not deadline.near("step")
    clock.seconds = 19.1
    assert deadline.near("step")


def timed(folder: Path, clock: Clock, seconds: float, **changes: Any) -> Any:
    work = job(folder, objective=Scripted(), **changes)
    work.objective.happens = clock.takes(10.0)
    work.objective.at = _Every()
    work.deadline = Deadline(seconds, now=clock)
    return work


class _Every:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


class Slow(Scores):
    """Validation that lasts 200 seconds of the clock."""

    def __init__(self, clock: Clock, *scores: float) -> None:
        super().__init__(*scores)
        self.clock = clock

    def __call__(self, model: Any) -> Any:
        self.clock.seconds += 200.0
        return super().__call__(model)


def test_a_run_stops_in_time_and_goes_on_exactly(tmp_path: Path) -> None:
    run(job(tmp_path / "whole"))
    clock = Clock()
    with pytest.raises(
        Interrupted, match=r"after step 3 of 5: the time of --max-time is up"
    ) as caught:
        run(timed(tmp_path / "parts", clock, 46.0))  # after step 3 another one would end at 40
    assert caught.value.exit_code == 130
    assert "--resume" in caught.value.fix
    assert clock.seconds == 30.0
    assert checkpoint.load_resume(tmp_path / "parts" / "resume.pt")["step"] == 3
    run(job(tmp_path / "parts"), resume=True)
    assert same(*(weights(tmp_path / name / "last.safetensors") for name in ("whole", "parts")))


def test_a_validation_that_would_not_end_in_time_is_left_to_the_next_run(tmp_path: Path) -> None:
    clock = Clock()
    work = timed(tmp_path, clock, 500.0, validate=Slow(clock, 0.1, 0.2), validate_every=2, steps=8)
    with pytest.raises(Interrupted, match="after step 3 of 8"):
        run(work)
    assert clock.seconds == 30.0 + 200.0
    again = job(tmp_path, validate=Scores(0.2, 0.3, 0.4), validate_every=2, steps=8)
    assert run(again, resume=True).best == {"miou": 0.4, "step": 8}


def test_the_last_step_comes_with_a_validation(tmp_path: Path) -> None:
    clock = Clock()
    work = timed(tmp_path, clock, 500.0, validate=Slow(clock, 0.1, 0.2), validate_every=2, steps=3)
    with pytest.raises(Interrupted, match="after step 2 of 3"):
        run(work)


def test_every_run_takes_a_step_and_the_last_one_ends_it(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="after step 1 of 3"):
        run(timed(tmp_path, Clock(), 1.0, steps=3))
    with pytest.raises(Interrupted, match="after step 2 of 3"):
        run(timed(tmp_path, Clock(), 1.0, steps=3), resume=True)
    assert run(timed(tmp_path, Clock(), 1.0, steps=3), resume=True).steps == 3


def test_a_large_state_is_foreseen_before_one_was_written() -> None:
    deadline = Deadline(1000.0, now=Clock())
    deadline.expect_state(int(700 * SLOW_DISK))
    assert deadline.near("save")
    assert not deadline.near("step")


@pytest.mark.parametrize("wrong", ["soon", "12"])
def test_the_command_says_what_a_time_is(wrong: str, tmp_path: Path) -> None:
    for command in (["fit", "-m", "full", "--src", tmp_path], ["adapt", "--tgt", tmp_path]):
        call = rsseg(*command, "--max-time", wrong)
        assert call.code == 1
        assert "1h30m" in call.err


def test_fit_in_two_jobs(tmp_path: Path, city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [
        "fit",
        "-m",
        "frozen",
        "--src",
        city,
        *SMALL,
        "--steps",
        "3",
        "--output",
        tmp_path / "r",
    ]
    with monkeypatch.context() as patched:
        patched.setattr(Deadline, "near", lambda self, *coming: True)
        first = rsseg(*options, "--max-time", "1h")
    assert first.code == 130
    assert "--max-time is up" in first.err
    second = rsseg(*options, "--resume", "--max-time", "2h")
    assert second.code == 0, second.err
    steps = [line["step"] for line in RunFolder(tmp_path / "r").records()]
    assert steps[-1] == 3

"""Several processes train the same model as one, without its random numbers, and resume."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ENVIRONMENT, SUPPORT
from processes import CASES, CUT, act, command
from runs import write_city
from training_jobs import job, run, weights

from rsseg_cli import distributed
from rsseg_cli.contract import batch_shard
from rsseg_cli.errors import RssegError
from rsseg_cli.training.loop import Trainer

CHAINS = {"fishertune"}
"""Each process samples its own posterior, so their common estimate is another one."""
NOISE = 1e-5
"""Relative difference of losses, absolute difference of weights."""


def in_two_processes(*arguments: str | Path) -> None:
    """Call processes.py, which forks two processes."""
    done = subprocess.run(
        [sys.executable, SUPPORT / "processes.py", *arguments],
        env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def losses(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["losses"] for line in lines if "losses" in line]


def differences(one: Path, other: Path) -> str:
    """Describe how two runs differ by more than float noise; return "" if they do not.

    Adam turns a gradient that is only float noise, as of a bias before a batch norm, into steps
    of full length: a few weights may differ.
    """
    for step, (these, those) in enumerate(zip(losses(one), losses(other), strict=True), 1):
        for name in these.keys() | those.keys():
            if abs(these[name] - those[name]) > NOISE * max(1.0, abs(these[name])):
                return f"{name} at step {step}: {these[name]} and {those[name]}"
    ours, theirs = (weights(folder / "last.safetensors") for folder in (one, other))
    pairs = [(ours[name].double(), theirs[name].double()) for name in sorted(ours)]
    gaps = torch.cat([(a - b).abs().flatten() for a, b in pairs])
    off = (gaps > NOISE).double().mean().item()
    return f"{off:.2%} of the weights" if off > 0.02 else ""


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    act(tmp_path, ["train=one", "stop=early"])
    in_two_processes(tmp_path, "train=two", "resume=early", "stop=late")
    act(tmp_path, ["resume=late"])
    pairs = [("two", name) for name in CASES if name not in CHAINS]
    pairs += [(folder, name) for folder in ("early", "late") for name in CUT]
    found = {
        f"{folder} {name}": differences(tmp_path / "one" / name, tmp_path / folder / name)
        for folder, name in pairs
    }
    assert {name: what for name, what in found.items() if what} == {}
    for name in CHAINS:
        pair = [losses(tmp_path / folder / name)[-1] for folder in ("one", "two")]
        assert pair[0] == pytest.approx(pair[1], rel=0.01)


@pytest.mark.slow
def test_two_processes_fit_adapt_and_evaluate_as_one(tmp_path: Path) -> None:
    for root in (tmp_path / "one", tmp_path / "two"):
        write_city(root / "city", scenes=3)
        write_city(root / "town", scenes=3)
    command(tmp_path / "one")
    in_two_processes(tmp_path / "two", "commands")
    for name in ("fitted", "adapted"):
        assert differences(tmp_path / "one" / name, tmp_path / "two" / name) == ""
        assert (tmp_path / "two" / name / "report" / "report.html").is_file()
    found = [json.loads((tmp_path / n / "said2.json").read_text()) for n in ("one", "two")]
    assert found[0]["miou"] == pytest.approx(found[1]["miou"], abs=1e-3)
    assert found[0]["classes"][0].keys() == found[1]["classes"][0].keys()
    assert [list(one["scenes"]) for one in found] == [["a", "b", "c"]] * 2


def test_micro_batches_of_a_step_learn_what_it_learns_whole(tmp_path: Path) -> None:
    found = []
    for count in (1, 2):
        run(job(tmp_path / str(count), "lora", grad_accumulation=count))
        found.append(weights(tmp_path / str(count) / "last.safetensors"))
    for name, tensor in found[0].items():
        assert torch.allclose(tensor, found[1][name], atol=NOISE), name


def test_processes_and_micro_batches_draw_other_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        trainer = Trainer(job(tmp_path, batch=6, grad_accumulation=3))
        seeds += [seed for step in (0, 1) for seed in trainer._seeds(step)]
    assert len(set(seeds)) == 2 * 2 * 3


def test_averages_over_shards_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.rand(3)
    with batch_shard.sharded():  # by one process
        assert not batch_shard.is_sharded()
        assert batch_shard.mean(tensor) is tensor
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with batch_shard.sharded():
        assert batch_shard.global_count(4) == 12
        with batch_shard.independent():
            assert batch_shard.global_count(4) == 4
            assert batch_shard.mean(tensor) is tensor
        assert batch_shard.is_sharded()
    assert not batch_shard.is_sharded()


def test_alone_there_is_no_group() -> None:
    with distributed.group("cpu", {}):
        assert not distributed.active()
        assert distributed.is_main()
        assert distributed.any_rank(True)
        assert distributed.gather(3) == [3]
        assert distributed.broadcast(3) == 3
        assert list(distributed.claim_indices(3)) == [0, 1, 2]
        with pytest.raises(RssegError, match="own"), distributed.raise_together():
            raise RssegError("own")
    assert torch.equal(distributed.all_gather_cat(torch.ones(2)), torch.ones(2))


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    asked = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    with pytest.raises(RssegError, match="2 processes need a GPU each, there are 1"):
        distributed.group("cuda", asked).__enter__()
    with pytest.raises(RssegError, match="cannot be the device of all"):
        distributed.group("cuda:0", asked).__enter__()


def test_a_group_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RssegError, match="the other processes cannot be reached"):
        distributed.group("cpu", {"WORLD_SIZE": "2"}).__enter__()

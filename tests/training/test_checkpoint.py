"""Model files and resume states: whole or not there, and clear errors."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import IO

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.training import checkpoint
from rsseg_cli.training.run_folder import RunFolder


def test_model_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save_model(path, {"head.w": torch.arange(6.0)[::2]}, {"classes": ["a"]})
    tensors, about = checkpoint.load_model(path)
    assert torch.equal(tensors["head.w"], torch.tensor([0.0, 2.0, 4.0]))
    assert about == {"format": checkpoint.FORMAT, "classes": ["a"]}
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"rsseg": json.dumps({"format": 99})})
    with pytest.raises(RssegError, match="format 99") as caught:
        checkpoint.load_model(path)
    assert "upgrade" in caught.value.fix


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x10" + b"\0" * 40])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UnreadableError):
        checkpoint.load_model(path)
    with pytest.raises(UnreadableError):
        checkpoint.load_resume(path)


def test_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UnreadableError, match="not written by rsseg"):
        checkpoint.load_model(path)


def test_truncated_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save_model(path, {"w": torch.zeros(1000)}, {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnreadableError, match="not a model file"):
        checkpoint.load_model(path)


def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "resume.pt"
    checkpoint.save_resume(path, {"step": 1})

    def full(state: object, stream: IO[bytes]) -> None:
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RssegError, match="disk is full"):
        checkpoint.save_resume(path, {"step": 2})
    assert checkpoint.load_resume(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["resume.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    big = {"w": torch.zeros(100_000)}
    folder.save_resume({"step": 1, "model": big})
    (tmp_path / ".resume.pt.part").symlink_to("/dev/full")
    with pytest.raises(RssegError, match="disk is full") as caught:
        folder.save_resume({"step": 2, "model": big})
    assert "--resume" in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["resume.pt"]
    assert checkpoint.load_resume(folder.resume)["step"] == 1
    folder.metrics.symlink_to("/dev/full")
    with pytest.raises(RssegError, match="disk is full"):
        folder.append_metrics({"step": 2})


def test_full_disk_keeps_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save_model(path, {"w": torch.zeros(10)}, {"step": 1})

    def full(tensors: object, part: Path, metadata: object) -> None:
        part.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(RssegError, match="disk is full"):
        checkpoint.save_model(path, {"w": torch.ones(10)}, {"step": 2})
    assert checkpoint.load_model(path)[1]["step"] == 1
    assert [one.name for one in tmp_path.iterdir()] == ["model.safetensors"]


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="nothing to resume"):
        checkpoint.load_resume(tmp_path / "resume.pt")


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RssegError, match="cannot be written"):
        checkpoint.save_resume(tmp_path / "missing" / "resume.pt", {})

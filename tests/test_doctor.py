"""`rsseg doctor`: what it looks at, what it finds wrong, and the fix."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import pytest
import torch
from runs import rsseg

from rsseg_cli import doctor


def findings(
    data_root: Path | None = None, runs: Path = Path("runs")
) -> dict[str, doctor.MachineCheck]:
    return {check.subject: check for check in doctor.check_machine(data_root=data_root, runs=runs)}


def test_a_sound_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call = rsseg("doctor", "--data-root", tmp_path)
    assert (call.code, call.err) == (0, "")
    for part in ("torch", str(torch.__version__), "gdal", "GeoTIFF", "weights", "free at"):
        assert part in call.out
    assert "FAIL" not in call.out
    assert not list(tmp_path.iterdir())


def test_the_answer_for_machines(tmp_path: Path) -> None:
    call = rsseg("doctor", "--data-root", tmp_path, "--json")
    assert call.code == 0
    rows = call.document
    assert all(set(row) == {"subject", "state", "text", "fix"} for row in rows)
    assert {row["state"] for row in rows} <= {"ok", "warn"}
    assert {"rsseg", "torch", "timm", "gdal", "weights", "runs", "data"} <= {
        row["subject"] for row in rows
    }


def test_a_data_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSSEG_DATA", str(tmp_path / "none"))
    call = rsseg("doctor")
    assert call.code == 1
    [line] = [line for line in call.out.splitlines() if line.startswith("FAIL")]
    assert str(tmp_path / "none") in line
    assert "try: check RSSEG_DATA" in call.out
    monkeypatch.delenv("RSSEG_DATA")
    assert findings()["data"].state == "warn"
    assert "RSSEG_DATA" in findings()["data"].fix


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without_timm(name: str) -> str:
        if name == "timm":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_timm)
    found = findings()
    assert (found["timm"].state, found["timm"].fix) == ("fail", "pip install timm")
    assert found["rasterio"].state == "ok"
    assert rsseg("doctor").code == 1


def test_a_full_or_closed_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings(runs=tmp_path / "deep" / "runs")["runs"].state == "ok"
    monkeypatch.setattr(doctor, "NEEDED_GB", 1e9)
    assert findings(runs=tmp_path)["runs"].state == "warn"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert findings(runs=tmp_path)["runs"].state == "fail"


def test_no_gpu_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = findings()["cuda"]
    assert (found.state, bool(found.fix)) == ("warn", True)
    assert "running on the CPU" in found.text


def test_files_of_another_gdal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROJ_LIB", "/opt/other/proj")
    assert "/opt/other/proj" in findings()["PROJ_LIB"].text

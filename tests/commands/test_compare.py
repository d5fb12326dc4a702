"""Runs beside each other: seeds in groups, paired differences, and what cannot be compared."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import needs_browser, run_in_page
from runs import rsseg
from scipy.stats import ttest_rel

from rsseg_cli.classes import Class
from rsseg_cli.commands.compare import compare
from rsseg_cli.errors import RssegError
from rsseg_cli.metrics.confusion import ConfusionMatrix
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.report.report import Report

CLASSES = [Class(1, "water", (0, 0, 255)), Class(2, "<b>town</b>", (255, 0, 0))]


def scores(right: int, *, classes: list[Class] = CLASSES, pixels: int = 1000) -> Scores:
    matrix = ConfusionMatrix(classes, np.zeros((len(classes), len(classes) + 1), np.int64))
    matrix.counts[0, :2] = right, pixels - right
    matrix.counts[1, 1] = pixels
    half = ConfusionMatrix(classes, matrix.counts // 2).scores()
    return replace(matrix.scores(), groups={"north": half})


def write(folder: Path, found: Scores | None, seed: int | None, rank: int = 8) -> Path:
    config: dict[str, Any] = {"method": {"name": "lora", "rank": rank}, "title": str(folder)}
    config["training"] = {"steps": 5} if seed is None else {"steps": 5, "seed": seed}
    Report(str(folder), found, config=config).write(folder / "report")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    low = [write(tmp_path / f"low-{s}", scores(500 + 20 * s), s) for s in (1, 2, 3)]
    high = [
        write(tmp_path / f"high-seed-{s}", scores(600 + 25 * s), s, rank=16) for s in (1, 2, 3, 4)
    ]
    return [*low, *high]


def test_seeds_are_one_row_with_mean_spread_and_paired_difference(runs: list[Path]) -> None:
    found = compare(runs).to_json()
    low, high = found["groups"]
    assert (Path(low["name"]).name, Path(high["name"]).name) == ("low", "high")
    assert (low["seeds"], high["seeds"]) == ([1, 2, 3], [1, 2, 3, 4])
    ours = [scores(600 + 25 * s).miou for s in (1, 2, 3, 4)]
    theirs = [scores(500 + 20 * s).miou for s in (1, 2, 3)]
    miou = high["scores"]["mIoU"]
    assert miou["values"] == pytest.approx(ours)
    assert miou["mean"] == pytest.approx(np.mean(ours))
    assert miou["deviation"] == pytest.approx(np.std(ours, ddof=1))
    difference = miou["difference"]
    assert difference["pairs"] == 3
    interval = ttest_rel(ours[:3], theirs).confidence_interval(0.95)
    assert [difference["low"], difference["high"]] == pytest.approx(list(interval))
    assert low["scores"]["mIoU"]["difference"] is None
    assert low["classes"]["water"]["mean"] == pytest.approx(np.mean([0.52, 0.54, 0.56]))
    assert high["domains"]["north"]["mean"] == pytest.approx(np.mean(ours), abs=1e-3)
    assert found["remarks"] == []


def test_runs_without_a_seed_are_rows_of_their_own(tmp_path: Path) -> None:
    for name, right in (("a", 500), ("b", 700)):
        Report(name, scores(right)).write(tmp_path / name)  # as `evaluate --report` of two maps
    found = compare([tmp_path / "a", tmp_path / "b"]).to_json()["groups"]
    assert [Path(one["name"]).name for one in found] == ["a", "b"]
    difference = found[1]["scores"]["mIoU"]["difference"]
    assert difference["pairs"] == 0
    assert difference["mean"] > 0


def test_files_say_the_same(runs: list[Path], tmp_path: Path) -> None:
    done = rsseg("compare", *runs, "--report", tmp_path / "out", "--json")
    document = done.document
    assert json.loads((tmp_path / "out/compare.json").read_text()) == document
    page = (tmp_path / "out/compare.html").read_text()
    assert not re.search(r"https?://|url\(|@import|fetch\(|<b>town", page)
    assert "&lt;b&gt;town" in page
    rows = list(csv.reader((tmp_path / "out/compare.csv").read_text().splitlines()))
    town = next(row for row in rows if row[:2] == ["Classes, IoU", "<b>town</b>"])
    low, high = document["groups"]
    assert float(town[2]) == low["classes"]["<b>town</b>"]["mean"]
    assert float(town[4]) == high["classes"]["<b>town</b>"]["difference"]["mean"]
    mean = 100 * high["scores"]["mIoU"]["mean"]
    for text in (page, (tmp_path / "out/compare.md").read_text(), rsseg("compare", *runs).out):
        assert f"{mean:.1f} \u00b1 " in text


@needs_browser
def test_page_works_in_a_browser(runs: list[Path], tmp_path: Path) -> None:
    compare(runs).write(tmp_path / "out")
    page = tmp_path / "out" / "compare.html"
    click = """
      const table = document.querySelectorAll("table.sortable")[1];
      table.querySelectorAll("thead button")[1].click();
      document.title = JSON.stringify({
        order: [...table.tBodies[0].rows].map((row) => Number(row.cells[1].dataset.value)),
        requests: performance.getEntriesByType("resource").map((e) => e.name)
          .filter((name) => !name.startsWith("data:")),
      });
    """
    found = run_in_page(page, click, tmp_path)
    assert found["order"] == sorted(found["order"], reverse=True)
    assert len(set(found["order"])) == 2
    assert found["requests"] == []


def test_other_classes_are_refused_by_name(runs: list[Path], tmp_path: Path) -> None:
    others = [CLASSES[0], Class(7, "forest", (0, 99, 0))]
    odd = write(tmp_path / "odd", scores(1, classes=others), 1)
    with pytest.raises(RssegError, match=r"only in .*low-1: 2 <b>town.*only in .*odd: 7 forest"):
        compare([runs[0], odd])


def test_other_ground_is_said(runs: list[Path], tmp_path: Path) -> None:
    far = write(tmp_path / "far", scores(1, pixels=77), 1)
    (remark,) = compare([runs[0], far]).remarks
    assert "different ground" in remark
    assert "154 px" in remark


def test_runs_that_say_nothing(runs: list[Path], tmp_path: Path) -> None:
    bare = write(tmp_path / "bare", None, 1)
    assert "left out" in compare([*runs, bare]).remarks[-1]
    alone = rsseg("compare", runs[0], bare)
    assert alone.code == 1
    assert f"without scores: {bare}" in alone.err
    (tmp_path / "file").write_text("")
    full = rsseg("compare", *runs, "--report", tmp_path / "file" / "below")
    assert full.code == 1
    assert "the comparison cannot be written" in full.err
    missing = rsseg("compare", runs[0], tmp_path)
    assert missing.code == 1
    assert "there is no report in" in missing.err
    broken = tmp_path / "report.json"
    for content in ("{", "[]", "{}"):
        broken.write_text(content)
        assert rsseg("compare", runs[0], broken).code == 1

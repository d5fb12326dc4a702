"""The benchmark of adapting: its areas share no ground, its table adds up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_bench_generalise import DATA, _labels, ground, real

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from generalise import ways_table
from generalise.areas import AREAS, make
from generalise.ways import WAYS


def record(seed: int, **target: float) -> dict[str, Any]:
    def said(miou: float, stop: str | None) -> dict[str, Any]:
        return {
            "target": miou, "last": miou - 0.1, "source": 0.9, "ious": {}, "chosen": 1,
            "stopped": stop, "cpu_s": 2.0 * seed,
        }  # fmt: skip

    ways = {way: said(target.get(way, 0.5), "astray" if way == "adapt" else None) for way in WAYS}
    return {"pair": "a_to_b", "method": "lora", "seed": seed, "ways": ways}


def test_gains_are_paired_by_seed(tmp_path: Path) -> None:
    records = [
        record(1, source=0.40, adapt=0.45),
        record(2, source=0.60, adapt=0.63),
        {"pair": "a_to_b", "method": "lora", "seed": 3, "error": "no"},
    ]
    rows = {row.way: row for row in ways_table.tabulate(records)}
    assert list(rows) == list(WAYS)
    adapt = rows["adapt"]
    assert adapt.target.mean == pytest.approx(0.54)
    assert adapt.gain.mean == pytest.approx(0.04)
    assert adapt.gain.deviation == pytest.approx(np.std([0.05, 0.03], ddof=1))
    assert adapt.last.mean == pytest.approx(0.44)
    assert (adapt.stopped, adapt.target.count, adapt.cpu_s) == (2, 2, 3.0)
    page = ways_table.write(records, tmp_path, "Title").read_text()
    line = "| lora | adapt | 54.0 ± 12.7 | +4.0 ± 1.4 | 44.0 ± 12.7 | 90.0 ± 0.0 | 2 | 2 | 3 |"
    assert line in page
    assert json.loads((tmp_path / "table.json").read_text())["rows"][0]["way"] == "source"


@real
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("name", AREAS)
def test_the_three_areas_share_no_ground(name: str, tmp_path: Path) -> None:
    areas = make(name, data=DATA, work=tmp_path)
    found = [ground(text) for text in (areas.source, areas.unlabelled, areas.tested)]
    assert len({tuple(source.classes) for source, _ in found}) == 1
    for number, (_, windows) in enumerate(found):
        assert windows
        for _, others in found[number + 1 :]:
            for image, _, window in windows:
                for other, _, theirs in others:
                    assert image != other or not window.intersect(theirs)
    (source, _), (_, unlabelled), (tested, _) = found
    assert _labels(source) >= _labels(tested)
    images = {path for path, _, _ in unlabelled}
    assert not images & {path for path, _, _ in found[0][1]}

"""Reports show figures of what methods record during a fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import SMALL, rsseg

SETTINGS: dict[str, tuple[str, ...]] = {
    "spectralmoe": ("depth=off", "experts=3", "rank=4", "tokens=8"),
    "crossearth_gate": ("every=2",),
    "weft": ("channels=16", "kernels=[1,3]", "active=1"),
    "fishertune": ("warmup=1", "statistics=1", "gauge=1", "estimation=1"),
}
PICTURES = {
    "spectralmoe": {"experts-visual"},
    "crossearth_gate": {"pathways"},
    "weft": {"experts-and-injections"},
    "fishertune": {"sensitivity"},
}


@pytest.mark.parametrize("method", PICTURES)
def test_a_fit_shows_its_methods_own_pictures(method: str, city: Path, tmp_path: Path) -> None:
    settings = [f"--set=method.{one}" for one in SETTINGS[method]]
    call = rsseg(
        "fit", "-m", method, "--src", city, "--output", tmp_path / "run", *SMALL, *settings,
        "--steps", "6", "--no-pretrained", "--set", "training.log_every=2",
    )  # fmt: skip
    assert call.code == 0, call.err
    report = tmp_path / "run" / "report"
    drawn = {path.stem for path in (report / "pictures").glob("*.png")}
    assert drawn >= PICTURES[method]
    page = (report / "report.html").read_text()
    assert page.count('<figure class="picture"><img src="data:image/png;base64,') == len(drawn)

"""Reports hold the same in every form, stand alone, and are honest about what is missing."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import geopandas
import numpy as np
import pytest
from browser import needs_browser, run_in_page
from matplotlib.figure import Figure
from rich.console import Console
from scenes import NORTH_UP, WriteScene, random_samples
from shapely.geometry import box

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.errors import UnreadableError
from rsseg_cli.metrics.area import estimate_area
from rsseg_cli.metrics.bootstrap import Units, intervals
from rsseg_cli.metrics.boundary import BoundaryIoU
from rsseg_cli.metrics.calibration import Calibration
from rsseg_cli.metrics.confusion import ConfusionMatrix
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.raster.decode import LabelCode
from rsseg_cli.report import map_figure
from rsseg_cli.report.charts import Series, line_chart, to_png, to_svg
from rsseg_cli.report.report import Report
from rsseg_cli.report.score_text import mistakes
from rsseg_cli.report.table import (
    ReportTable,
    count_cell,
    percent_cell,
    tables_to_csv,
    text_cell,
)
from rsseg_cli.report.training_charts import training_charts

CLASSES = [
    Class(1, "a <b> & c", (200, 30, 30)),
    Class(2, "pipe|water", (30, 30, 200)),
    Class(3, "stray", (90, 90, 90)),
    Class(7, "absent", (10, 200, 10)),
]
RECORDS: list[dict[str, Any]] = [
    {"step": 50, "loss": 2.0, "losses": {"a": 1.9, "b": 0.1}, "lr": 1e-4, "images_per_s": 9.0},
    {"step": 100, "loss": 1.0, "losses": {"a": 0.9, "b": 0.1}, "lr": 5e-5, "images_per_s": 9.5},
    {"step": 100, "val": {"miou": 0.4, "macc": 0.5, "accuracy": None}},
]  # fmt: skip


def counted(seed: int) -> ConfusionMatrix:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, (40, 40))
    predicted = np.where(rng.random((40, 40)) < 0.6, truth, rng.integers(0, 3, (40, 40)))
    predicted[:2] = IGNORE
    matrix = ConfusionMatrix(CLASSES)
    matrix.update(predicted, truth)
    return matrix


@pytest.fixture
def scores() -> Scores:
    north, south = counted(1), counted(2)
    boundary = BoundaryIoU(CLASSES, distance=3)
    labels = np.zeros((20, 20), np.uint8)
    boundary.update(labels, labels)
    parts = {"north": north.scores(), "south": south.scores()}
    soft = {"s_measure": 0.91234, "f_max": None, "images": 3, "empty": 1}
    tenths = np.stack([north.counts, south.counts] * 5)
    units = Units("blocks", tenths)
    sums = tenths.sum(0)[:, :-1]
    mapped = sums.sum(0) * 3
    areas_m2 = mapped * (125_000 / mapped.sum())
    calibration = Calibration()
    calibration.update(np.array([0.35, 0.72, 0.95]), np.array([False, True, True]))
    total = replace(
        (north + south).scores(),
        groups=parts,
        scenes=parts,
        saliency=soft,
        intervals=intervals(units),
        area=estimate_area(CLASSES, sums, mapped, units=units, areas_m2=areas_m2),
        calibration=calibration.reliability(),
    )
    return boundary.add_to(total)


@pytest.fixture
def report(scores: Scores) -> Report:
    figure = Figure(figsize=(1, 1))
    return Report(
        title="map <1> & truth",
        subtitle="map.tif against truth.gpkg",
        scores=scores,
        remarks=["ids <differ>"],
        records=RECORDS,
        pictures={"Quick look": figure, "quick-look": to_png(figure)},
        config={"method": {"name": "lora", "rank": 8}},
        about={"device": "cpu", "images per second": 11.934, "seeds": [1, 2], "steps": 4000},
    )


def test_json_holds_the_keys_that_scripts_rely_on(report: Report, tmp_path: Path) -> None:
    report.write(tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    assert {"miou", "macc", "accuracy", "f1", "classes", "confusion", "groups"} <= found.keys()
    row = {"id", "name", "iou", "f1", "precision", "recall", "pixels"}
    assert all(row <= one.keys() for one in found["classes"])
    assert found["classes"][3]["iou"] is None
    assert found["groups"]["north"]["miou"] == report.scores.groups["north"].miou
    assert found["records"] == RECORDS
    assert found["config"]["method"]["rank"] == 8
    assert Scores.from_json(found) == report.scores
    assert json.loads(json.dumps(report.to_json()))["title"] == report.title


def test_csv_has_a_row_per_class_and_part(report: Report, tmp_path: Path) -> None:
    report.write(tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())))
    assert {row["part"] for row in rows} == {"all", "group:north", "group:south"}
    assert len(rows) == 3 * (len(CLASSES) + 1)
    of_all = {row["name"]: row for row in rows if row["part"] == "all"}
    assert float(of_all["pipe|water"]["iou"]) == report.scores.classes[1].iou
    assert of_all["absent"]["iou"] == ""
    assert float(of_all["mean"]["iou"]) == report.scores.miou
    assert float(of_all["mean"]["recall"]) == report.scores.macc
    spread = report.scores.intervals.iou[1]
    assert float(of_all["pipe|water"]["iou_low"]) == spread.low
    assert float(of_all["pipe|water"]["iou_high"]) == spread.high
    matrix = list(csv.reader(io.StringIO((tmp_path / "confusion.csv").read_text())))
    assert [list(map(int, row[1:-1])) for row in matrix[1:]] == report.scores.confusion
    assert sum(int(row[-1]) for row in matrix[1:]) == report.scores.unmapped == 160


def test_markdown_is_whole_and_escaped(report: Report, tmp_path: Path) -> None:
    report.write(tmp_path)
    found = (tmp_path / "report.md").read_text()
    assert "mIoU **" in found
    assert "pipe\\|water" in found
    assert "absent (absent) | - | - | - | - |" in found
    assert "stray (not in truth) | 0.0 |" in found
    assert "> ids <differ>" in found
    assert "rank: 8" in found
    for path in re.findall(r"!\[.*?\]\((.*?)\)", found):
        assert (tmp_path / path).read_bytes().startswith(b"\x89PNG")
    tables = re.findall(r"(?:^\|.*\n?)+", found, flags=re.MULTILINE)
    assert len(tables) >= 5
    assert "Olofsson et al. (2014)" in found
    for table in tables:
        bars = {line.replace("\\|", "").count("|") for line in table.strip().splitlines()}
        assert len(bars) == 1, table


def test_page_stands_alone_and_shows_what_json_says(report: Report, tmp_path: Path) -> None:
    page = report.write(tmp_path)[0].read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttp", page)
    assert page.count("data:image/png;base64,") == 2
    text = html.unescape(re.sub(r"<style>.*?</style>|<script>.*?</script>", "", page, flags=re.S))
    assert "a <b> & c" not in page
    assert "a <b> & c" in text
    assert "map <1> & truth" in text
    assert f"{100 * report.scores.miou:.1f}" in text
    assert f"{100 * report.scores.miou_with_strays:.1f}" in text
    assert "In the map but not in the truth: stray" in text
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert page.count('<figure class="chart">') == 5
    spread = report.scores.intervals.scores["miou"]
    assert f"95 %: {100 * spread.low:.1f}\u2009\u2013\u2009{100 * spread.high:.1f}" in text
    area = report.scores.area.classes[0]
    assert f"{area.area.value * 12.5:.4g} \u00b1" in text
    assert "bootstrap over 10 blocks" in text
    assert f"calibration error {100 * report.scores.calibration.ece:.1f}" in text
    assert page.count('class="striped"') >= 3
    assert "11.93" in text
    assert "1, 2" in text


@pytest.mark.parametrize("unmapped", [True, False])
def test_heat_maps_have_a_cell_per_pair(tmp_path: Path, unmapped: bool) -> None:
    matrix = counted(3)
    if not unmapped:
        matrix.counts[:, -1] = 0
    Report(title="t", scores=matrix.scores()).write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    columns = len(CLASSES) + unmapped
    maps = re.findall(r'<div[^>]*data-matrix="(\w+)".*?(<tbody>.*?</tbody>)', page, flags=re.S)
    assert [kind for kind, _ in maps] == ["truth", "map", "pixels"]
    for kind, table in maps:
        rows = re.findall(r"<tr>(.*?)</tr>", table, flags=re.S)
        assert [row.count("<td") for row in rows] == [columns] * len(CLASSES), kind
        shown = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
        if kind == "pixels":
            found = [[int(cell.replace(",", "")) for cell in row] for row in shown]
            assert found == matrix.counts[:, :columns].tolist()
        if kind == "truth":
            assert sum(map(float, shown[0])) == pytest.approx(100, abs=0.3)
        if kind == "map":
            assert sum(float(row[0]) for row in shown[:2]) == pytest.approx(100, abs=0.2)


def test_terminal_shows_the_scores_and_their_policy(report: Report) -> None:
    out = io.StringIO()
    report.show(Console(file=out, width=110, force_terminal=False))
    shown = out.getvalue()
    assert f"mIoU {100 * report.scores.miou:.1f}" in shown
    assert "absent (absent)" in shown
    assert "stray (not in truth)" in shown
    assert "counted in, as torchmetrics" in shown
    assert "note: ids <differ>" in shown
    assert "unmapped" in shown
    assert "S-measure" in shown


def test_brackets_in_names_are_no_markup(scores: Scores) -> None:
    rows = [replace(row, name=f"[bold]{row.id}[/red]") for row in scores.classes]
    odd = replace(scores, classes=rows, groups={"[/blue]": scores.groups["north"]})
    out = io.StringIO()
    Report(title="[/oops]", scores=odd, remarks=["[/no]"]).show(Console(file=out, width=150))
    assert "[/oops]" in out.getvalue()
    assert "[bold]7[/red]" in out.getvalue()
    assert "[/blue]" in out.getvalue()


def test_run_without_validation_says_so(tmp_path: Path) -> None:
    bare = Report(title="run", scores=None, records=RECORDS[:2])
    written = {path.name for path in bare.write(tmp_path)}
    assert written == {"report.html", "report.md", "report.json"}
    assert "there are no scores" in (tmp_path / "report.html").read_text()
    assert "there are no scores" in (tmp_path / "report.md").read_text()
    out = io.StringIO()
    bare.show(Console(file=out))
    assert "no scores" in out.getvalue()
    assert "miou" not in bare.to_json()


def test_nothing_scored_and_one_class(tmp_path: Path) -> None:
    empty = ConfusionMatrix(CLASSES).scores()
    Report(title="empty", scores=empty).write(tmp_path / "empty")
    assert ">-<" in (tmp_path / "empty/report.html").read_text()
    one = ConfusionMatrix(CLASSES[:1])
    one.update(np.zeros(4, int), np.zeros(4, int))
    Report(title="one", scores=one.scores()).write(tmp_path / "one")
    assert "Confusion" not in (tmp_path / "one/report.html").read_text()


def test_writing_again_replaces_and_leaves_no_parts(report: Report, tmp_path: Path) -> None:
    first = report.write(tmp_path)
    assert report.write(tmp_path) == first
    assert not list(tmp_path.rglob("*.part"))
    assert len(list((tmp_path / "pictures").iterdir())) == 2


def test_mistakes_are_the_largest_cells_off_the_diagonal(scores: Scores) -> None:
    found = mistakes(scores, most=2)
    counts = np.array(scores.confusion)
    np.fill_diagonal(counts, 0)
    assert [mistake.pixels for mistake in found] == sorted(counts.ravel().tolist())[::-1][:2]
    assert found[0].fraction == found[0].pixels / max(
        row.pixels for row in scores.classes if row.name == found[0].true
    )


def test_charts_leave_out_what_was_not_recorded() -> None:
    assert training_charts([]) == []
    charts = training_charts(RECORDS)
    assert "mIoU" in charts[0]
    assert "accuracy" not in charts[0]
    only_loss = training_charts([{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1.0}])
    assert len(only_loss) == 1


def ticks(figure: Figure) -> list[float]:
    low, high = figure.axes[0].get_ylim()
    return [float(tick) for tick in figure.axes[0].get_yticks() if low <= tick <= high]


def test_chart_begins_and_ends_at_a_tick() -> None:
    assert ticks(line_chart([Series("y", [0, 10], [0.3, 3.6])])) == pytest.approx([0, 1, 2, 3, 4])
    assert ticks(line_chart([Series("y", [1, 2], [2.2, 3.6])], zero=True))[0] == 0
    assert line_chart([Series("y", [1], [None])]) is None
    single = line_chart([Series("y", [1], [5.0])])
    low, high = single.axes[0].get_ylim()
    assert low < 5 < high
    logarithmic = line_chart([Series("y", [1, 2], [0.02, 30.0])], log=True)
    assert ticks(logarithmic) == pytest.approx([0.01, 0.1, 1, 10, 100])


def test_svg_is_inline_accessible_and_deterministic() -> None:
    lines = [Series("<y> $", [0, 1, 10], [0.0, None, 4.0]), Series("\u6c34", [0, 10], [1.0, 2.0])]
    svg, again = (to_svg(line_chart(lines), "a & b") for _ in range(2))
    assert svg == again
    assert 'role="img" aria-label="a &amp; b"' in svg
    assert "<figcaption>a &amp; b</figcaption>" in svg
    assert "<title>&lt;y&gt; $</title>" in svg
    root = ElementTree.fromstring(svg)  # well-formed
    texts = {text.text for text in root.iter("text")}
    assert {"<y> $", "\u6c34", "0", "10"} <= texts
    styles = "".join(element.get("style", "") for element in root.iter())
    assert {"var(--l0)", "var(--l1)", "var(--soft)", "var(--rule)"} <= set(
        re.findall(r"var\(--\w+\)", styles)
    )
    assert not re.search(r"#[0-9a-f]{6}|url\(|font-family|xmlns|clip-path|<metadata", svg)
    ids = re.findall(r' id="(.*?)"', svg)
    other = re.findall(r' id="(.*?)"', to_svg(line_chart(lines), "another"))
    assert len(set(ids)) == len(ids) > 0
    assert not set(ids) & set(other)
    assert set(re.findall(r'href="#(.*?)"', svg)) <= set(ids)


TWO = [Class(0, "land", (0, 100, 0)), Class(5, "house", (200, 0, 0))]


def test_quicklook_shows_image_truth_map_and_errors(
    tmp_path: Path, write_scene: WriteScene
) -> None:
    ids = np.zeros((1, 60, 40), np.uint8)
    ids[0, 10:30, 10:20] = 5
    wrong = ids.copy()
    wrong[0, :6] = 5
    image = write_scene(random_samples(4, 60, 40, "uint16"), "image.tif")
    truth, made = write_scene(ids, "truth.tif"), write_scene(wrong, "map.tif")
    figure = map_figure.quicklook(made, TWO, image=image, truth=truth, title="t")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["image", "truth", "map", "errors"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["0 land", "5 house", "right", "wrong"]
    shown = figure.axes[3].images[0].get_array()
    assert (shown[:6] == map_figure.WRONG).all()
    assert (shown[6:] == map_figure.RIGHT).all()
    assert to_png(figure).startswith(b"\x89PNG")
    x, y = NORTH_UP @ (10, 10)
    polygon = geopandas.GeoDataFrame(geometry=[box(x, y - 200, x + 100, y)], crs=32633)
    polygon.to_crs(4326).to_file(tmp_path / "truth.gpkg")
    code = LabelCode(tuple(TWO), encoding="vector", background=0)
    drawn = map_figure.quicklook(made, TWO, truth=tmp_path / "truth.gpkg", code=code, side=30)
    assert [axes.get_title() for axes in drawn.axes] == ["truth", "map", "errors"]
    assert drawn.axes[0].images[0].get_array().shape == (30, 20, 3)
    assert [axes.get_title() for axes in map_figure.quicklook(made, TWO).axes] == ["map"]
    with pytest.raises(UnreadableError):
        map_figure.quicklook(tmp_path / "none.tif", TWO)


def test_quicklook_without_any_crs(write_scene: WriteScene) -> None:
    ids = np.zeros((1, 30, 30), np.uint8)
    ids[0, :3] = 255
    made = write_scene(ids, "map.tif", crs=None, transform=None, nodata=255)
    figure = map_figure.quicklook(made, TWO, truth=made, image=made)
    assert not (figure.axes[-1].images[0].get_array() == map_figure.WRONG).all(-1).any()
    assert (figure.axes[1].images[0].get_array()[:3] == map_figure.EMPTY).all()


def test_stretch_leaves_missing_pixels_out() -> None:
    plane = np.linspace(100, 200, 101).reshape(1, 1, 101)
    plane[0, 0, 0], valid = -9999, np.ones((1, 101), bool)
    valid[0, 0] = False
    pixels = map_figure.stretch(plane, valid)
    assert (pixels[0, 0] == map_figure.EMPTY).all()
    assert abs(int(pixels[0, 50, 0]) - 127) <= 2
    assert pixels[0, -1, 0] == 255
    dark = map_figure.stretch(np.full((3, 2, 2), np.nan), np.ones((2, 2), bool))
    assert (dark == 0).all()


def test_many_scenes_are_folded_with_the_worst_first(tmp_path: Path) -> None:
    scenes = {f"scene {seed:03}": counted(seed).scores() for seed in range(30)}
    total = replace(counted(0).scores(), groups=scenes, scenes=scenes)
    page = Report("many", total).write(tmp_path)[0].read_text()
    wanted = sorted(scenes, key=lambda name: scenes[name].miou)
    shown, folded = page.split("<details><summary>All 30</summary>")
    assert re.findall(r"scene \d{3}", shown) == wanted[:10]
    assert re.findall(r"scene \d{3}", folded.split("</details>")[0]) == wanted
    text = (tmp_path / "report.md").read_text()
    assert re.findall(r"scene \d{3}", text) == wanted[:10]
    assert "The 10 worst of 30" in text
    assert len(json.loads((tmp_path / "report.json").read_text())["scenes"]) == 30


def test_names_need_no_font_and_are_no_formula() -> None:
    panel = map_figure.Panel("map $", np.zeros((9, 9, 3), np.uint8))
    classes = [Class(1, "\u6c34\u4f53", (0, 0, 9)), Class(2, "$\\frac$", (9, 0, 0))]
    drawn = map_figure.draw([panel], classes, title="\u56fe_$x_.tif$")
    assert to_png(drawn).startswith(b"\x89PNG")


@needs_browser
def test_page_works_in_a_browser(report: Report, tmp_path: Path) -> None:
    page = report.write(tmp_path)[0]
    click = """
      const head = document.querySelectorAll(".classes thead button");
      head[1].click();
      document.querySelector('[data-show="pixels"]').click();
      const shown = [...document.querySelectorAll("[data-matrix]")].filter((m) => !m.hidden);
      document.title = JSON.stringify({
        order: [...document.querySelectorAll(".classes tbody td.bars")].map((c) => c.dataset.value),
        matrix: shown.map((m) => m.dataset.matrix),
        requests: performance.getEntriesByType("resource").map((e) => e.name)
          .filter((name) => !name.startsWith("data:")),
      });
    """
    found = run_in_page(page, click, tmp_path)
    values = [float(value) for value in found["order"]]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) > 2
    assert found["matrix"] == ["pixels"]
    assert found["requests"] == []


def test_a_table_is_the_same_in_every_form() -> None:
    row = (
        text_cell("a|b", note="absent"),
        percent_cell(0.25),
        percent_cell(None),
        count_cell(1200),
    )
    table = ReportTable("t", ("Name", "IoU", "95 %", "Pixels"), (row,), details=frozenset({"95 %"}))
    lines = table.to_markdown().splitlines()
    assert lines[0] == "| Name | IoU | 95 % | Pixels |"
    assert lines[2] == "| a\\|b (absent) | 25.0 | - | 1,200 |"
    assert table.to_csv() == "Name,IoU,95 %,Pixels\na|b,0.25,,1200\n"
    assert tables_to_csv([table]) == "table,Name,IoU,95 %,Pixels\nt,a|b,0.25,,1200\n"
    out = io.StringIO()
    Console(file=out, width=80).print(table.to_rich())
    assert "a|b (absent)" in out.getvalue()
    assert "95 %" not in out.getvalue()

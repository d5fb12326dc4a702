"""A dataset's YAML is strict, has clear errors, and survives being written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rsseg_cli import presets
from rsseg_cli.data.spec.dataset_spec import DatasetSpec
from rsseg_cli.errors import RssegError

PLAIN = """\
name: plain
bands:
- {name: red, wavelength_nm: 660}
- {name: nir, wavelength_nm: 830, band: 4}
classes:
- {id: 0, name: background, color: [0, 0, 0]}
- {id: 4, name: road, color: [9, 9, 9], value: street}
"""


def parse(text: str) -> DatasetSpec:
    return presets.read_text(text, Path("dataset.yaml")).parse(DatasetSpec)


def test_defaults_are_a_folder_of_images_and_labels() -> None:
    spec = parse(PLAIN)
    assert spec.file_bands == (1, 4)
    assert spec.labels == ("labels/{stem}.*",)
    assert [one.name for one in spec.class_list()] == ["background", "road"]
    code = spec.code()
    assert code.background == 0
    assert code.attributes() == {"background": 0, "0": 0, "street": 1}
    assert code.ids() == {0: 0, 4: 1}


@pytest.mark.parametrize(("text", "index"), [("ignore", None), ("road", 1), ("background", 0)])
def test_background(text: str, index: int | None) -> None:
    assert parse(PLAIN + f"background: {text}\n").code().background == index


def test_background_of_three_classes_is_no_class_by_default() -> None:
    text = PLAIN + "- {id: 5, name: tree, color: [1, 1, 1]}\n"
    assert parse(text).code().background is None


@pytest.mark.parametrize(
    ("line", "what", "where"),
    [
        ("clases: []", "clases is not a known setting", "line 8"),
        ("reader: {boxx: 1}", "reader.boxx is not", "line 8"),
        ("splits:\n  val: {group: {}}", "splits.val.group is not", "line 9"),
        ("splits:\n  val: {blocks: 1.5}", "splits.val.blocks", "line 9"),
        ("splits:\n  val: {exclude: test}", "exclude names no other split: test", ""),
        ("splits:\n  val: {exclude: val}", "exclude names no other split: val", ""),
        ("splits:\n  val: {groups: {city: a}}", "no group city in pattern", ""),
        ("splits:\n  val: {box: [0.5, 0, 0.5, 1]}", "the box is empty", ""),
        ("labels: '{town}.png'", "no group town in pattern", ""),
        ("pattern: '('", "not a regular expression", "line 8"),
        ("ignore: [4]", "id 4 is both a class and ignored", ""),
        ("remap: {1: 3}", "remap leads to id 3", ""),
        ("background: sea", "background: sea is not a class", ""),
        ("norm: {mean: [1], std: [1]}", "norm needs one mean", ""),
        ("norm: {mean: [1, 1], std: [1, 0]}", "norm.std.1", "line 8"),
        ("encoding: png", "encoding", "line 8"),
    ],
)
def test_mistakes_are_named(line: str, what: str, where: str) -> None:
    with pytest.raises(RssegError) as caught:
        parse(PLAIN + line + "\n")
    assert what in caught.value.what
    assert caught.value.where.startswith("dataset.yaml")
    assert where in caught.value.where


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("- {id: 4, name: b, color: [0, 0, 0]}", "id 4 occurs twice"),
        ("- {id: 5, name: road, color: [0, 0, 0]}", "name road occurs twice"),
        ("- {id: 255, name: b, color: [0, 0, 0]}", "classes.2.id"),
        ("- {id: 5, name: b, color: [0, 0, 256]}", "classes.2.color.2"),
    ],
)
def test_class_lists_are_checked(row: str, what: str) -> None:
    with pytest.raises(RssegError, match=what):
        parse(PLAIN + row + "\n")


RICH = """\
reader: {nodata: none, crs: 'EPSG:2154', box: [1, 2, 3, 4]}
splits:
  train: {exclude: val, names: [a, 'b: c']}
  val: {box: [0, 0.5, 1, 1], groups: {stem: [x, y]}}
domains:
  one: {glob: 'images/{a,b}/**'}
norm: {mean: [1.5, 2], std: [1.0e-3, 1]}
ignore: [255, none, [1, 2, 3]]
remap: {7: 4}
labels: ['a/{stem}.tif', 'b/{stem:0>2}.*']
"""


@pytest.mark.parametrize("extra", ["", RICH])
def test_what_is_written_reads_the_same(extra: str) -> None:
    spec = parse(PLAIN + extra)
    text = spec.to_yaml("Found by looking.\nSecond line.")
    assert text.startswith("# Found by looking.\n# Second line.\nname: plain\n")
    assert parse(text) == spec


@pytest.mark.parametrize("name", presets.names("datasets"))
def test_dataset_presets_hold(name: str) -> None:
    path = presets.find("datasets", name)
    spec = presets.read(path).parse(DatasetSpec)
    assert spec.name == name
    assert spec.title
    assert spec.licence
    assert spec.sources
    assert spec.url
    assert not Path(spec.root).is_absolute()
    assert parse(spec.to_yaml()) == spec
    wavelengths: list[Any] = [band.wavelength_nm for band in spec.bands]
    assert all(wavelength is None or 350 < wavelength < 15_000 for wavelength in wavelengths)


def test_the_first_dataset_presets_are_there() -> None:
    assert {"loveda", "fbp_gf2"} <= set(presets.names("datasets"))

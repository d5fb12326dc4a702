"""Every dataset preset reads the published files: pairs, bands, ids, splits, domains, a step."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_trees import HEIGHT, TREES, WIDTH, Tree, write
from PIL import Image
from runs import SMALL, rsseg

from rsseg_cli import presets
from rsseg_cli.classes import IGNORE
from rsseg_cli.commands.model import build
from rsseg_cli.config import resolve
from rsseg_cli.contract import Bands
from rsseg_cli.data.pair import Pair
from rsseg_cli.data.source import Source
from rsseg_cli.data.spec.dataset_spec import DatasetSpec
from rsseg_cli.data.tiles.tile_stream import TileStream
from rsseg_cli.raster.grid import Window
from rsseg_cli.segmenter import Segmenter

CONFIG = resolve(method="full", file=None, backbone="vit_tiny", head="linear", pretrained=False)


@cache
def model_for(names: tuple[str, ...], wavelengths: tuple[float | None, ...]) -> Segmenter:
    """Build a model for some bands once, with a head for the longest of the class lists."""
    level = (0.0,) * len(names)
    bands = Bands(
        names=names, wavelengths_nm=wavelengths, mean=level, std=(1.0,) * len(names), dtype="uint8"
    )
    return build(CONFIG, bands, 24)


def spec_of(name: str) -> DatasetSpec:
    return presets.read(presets.find("datasets", name)).parse(DatasetSpec)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a data root of its own for every tree."""
    return {name: write(name, tmp_path_factory.mktemp(name)) for name in TREES}


def locate(name: str, roots: dict[str, Path], rest: str = "") -> Source:
    """Locate a preset in its tree; margins are cut from files of the tree's small size."""
    source = Source.locate(name + rest, data_root=roots[name])
    margin = TREES[name].margin
    if margin:
        reader = source.spec.reader.model_copy(update={"box": margin})
        source.spec = source.spec.model_copy(update={"reader": reader})
    return source


def paths(pairs: list[Pair], root: Path) -> list[str]:
    return [pair.image.relative_to(root).as_posix() for pair in pairs]


def ends(pairs: list[Pair], root: Path) -> list[str]:
    return [path.rpartition(".")[0] for path in paths(pairs, root)]


def ending_in(wanted: list[str], tree: Tree) -> list[str]:
    stems = sorted(image.rpartition(".")[0] for image in tree.files)
    found = [stem for stem in stems if any(stem.endswith(end) for end in wanted)]
    assert len(found) == len(wanted)
    return found


def test_there_is_a_preset_for_every_dataset() -> None:
    assert len(presets.names("datasets")) == 34
    assert set(presets.names("datasets")) == set(TREES)


@pytest.mark.parametrize("name", sorted(TREES))
def test_images_find_their_labels(name: str, roots: dict[str, Path]) -> None:
    source, tree = locate(name, roots), TREES[name]
    found = {
        entry.path: entry.label and entry.label.relative_to(source.root).as_posix()
        for entry in source.entries()
    }
    listed = source.spec.listing is not None
    wanted = {path: label for path, label in tree.files.items() if not (listed and "02-02" in path)}
    assert found == wanted


@pytest.mark.parametrize("name", sorted(TREES))
def test_splits_are_those_published_and_share_nothing(name: str, roots: dict[str, Path]) -> None:
    source, tree = locate(name, roots), TREES[name]
    for split, wanted in tree.splits.items():
        assert ends(source.pairs(split), source.root) == ending_in(wanted, tree), split
    train, validation = source.training_and_validation()
    assert train
    assert validation
    for pair in train:
        for other in (held for held in validation if held.image == pair.image):
            common = [a.intersect(b) for a in pair.ground for b in other.ground]
            assert not any(common), f"{pair.name} is learnt from and validated on"
    if "test" in source.spec.splits and "val" in source.spec.splits:
        learnt = {pair.image for pair in train}
        assert not learnt & {pair.image for pair in source.pairs("test")}


@pytest.mark.parametrize("name", [name for name, tree in sorted(TREES.items()) if tree.domains])
def test_domains_are_addressable(name: str, roots: dict[str, Path]) -> None:
    for domain, wanted in TREES[name].domains.items():
        source = locate(name, roots, f"::{domain}")
        chosen = [e for e in source.entries() if source._in_domain(e)]
        stems = [entry.path.rpartition(".")[0] for entry in chosen]
        assert stems == ending_in(wanted, TREES[name])
        assert domain in source.domains()


@pytest.mark.parametrize("name", sorted(TREES))
def test_bands_and_ids_are_read_as_described(name: str, roots: dict[str, Path]) -> None:
    source, tree = locate(name, roots), TREES[name]
    labelled = [pair for pair in _all(source) if pair.label]
    pair, opener = labelled[0], source.opener
    names = [band.name for band in source.spec.bands]
    assert names == list(tree.bands)
    x0, y0, x1, y1 = tree.margin or (0, 0, WIDTH, HEIGHT)
    assert (pair.place.width, pair.place.height) == (x1 - x0, y1 - y0)
    window = Window(0, 0, x1 - x0, y1 - y0)
    with opener.scene(pair.image) as scene:
        samples, valid = scene.read(window)
    assert valid.all()
    number = list(tree.files).index(pair.image.relative_to(source.root).as_posix())
    written = tree.samples(number)[: len(names), y0:y1, x0:x1]
    lossy = pair.image.suffix == ".jpg"
    np.testing.assert_allclose(samples, written, atol=6 if lossy else 0)
    reader = opener.labels(pair)
    assert reader is not None
    with reader:
        rows = reader.read(window)
    expected = tree.expected()[x0:x1]
    found = [None if i == IGNORE else source.classes[i].name for i in rows[len(rows) // 2].tolist()]
    assert found == expected


def _all(source: Source) -> list[Pair]:
    """List all pairs, also where some labels are not on disk."""
    return [source._pair(entry) for entry in source.entries()]


@pytest.mark.parametrize("name", sorted(TREES))
def test_a_model_takes_a_step(name: str, roots: dict[str, Path]) -> None:
    source = locate(name, roots)
    train, _ = source.training_and_validation()
    bands = source.bands(train)
    batch = TileStream([(source.opener, train)], bands, tile=32, batch=2, seed=0)[0]
    assert batch.label[batch.label != IGNORE].max() < len(source.classes)
    model = model_for(bands.names, bands.wavelengths_nm)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (bands.mean, bands.std))
    losses = model((batch.image.float() - mean) / std, batch.label.long())
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert any(p.grad is not None and p.grad.any() for _, p in model.trainable_parameters())


def test_the_command_line_fits_a_preset(tmp_path: Path, roots: dict[str, Path]) -> None:
    """CMYK scenes, coloured labels and a domain, from `--src` to a model file."""
    call = rsseg(
        "fit", "-m", "frozen", "--src", "fbp_cmegacities:test:ps_chengdu", "--data-root",
        roots["fbp_cmegacities"], "--output", tmp_path / "run", *SMALL, "--no-pretrained",
        "--steps", "1", "--set", "data.val_fraction=0",
    )  # fmt: skip
    assert call.code == 0, call.err
    assert "4 bands (nir red green blue), 24 classes" in call.err
    assert (tmp_path / "run/model.safetensors").is_file()


# --- traps ----------------------------------------------------------------------------------------


def test_margins_of_five_billion_pixels_are_the_published_ones() -> None:
    for name in ("fbp_gf2", "gid5"):
        box = spec_of(name).reader.box
        assert box == (60, 54, 7300 - 40, 6908 - 54)


def test_flair_lies_in_lambert_93(roots: dict[str, Path]) -> None:
    for name in ("flair1_12", "flair1_13", "flair1_19"):
        pair = locate(name, roots, ":train").pairs()[0]
        assert pair.place.crs is not None
        assert pair.place.crs.to_epsg() == 2154


def test_palette_files_are_read_by_their_ids(roots: dict[str, Path]) -> None:
    """Labels of GTAV are palette PNGs whose indices are label ids."""
    source = locate("gtav", roots)
    pair = source.pairs("all")[0]
    assert pair.label is not None
    before = pair.label.read_bytes()
    ids = np.resize(np.array([7, 0, 26, 33], np.uint8), (HEIGHT, WIDTH))
    picture = Image.new("P", (WIDTH, HEIGHT))
    picture.frombytes(ids.tobytes())
    picture.putpalette([value for color in range(256) for value in (color, 9, 255 - color)])
    picture.save(pair.label)
    reader = source.opener.labels(pair)
    assert reader is not None
    with reader:
        row = reader.read(Window(0, 0, 4, 1))[0].tolist()
    pair.label.write_bytes(before)
    assert row == [0, IGNORE, 13, 18]


@pytest.mark.parametrize("name", ["fbp_gf2:all", "potsdam_rgb:all", "loveda:trainval:rural"])
def test_splits_that_are_all_for_training_hold_nothing_back(
    name: str, roots: dict[str, Path]
) -> None:
    preset, _, rest = name.partition(":")
    source = locate(preset, roots, f":{rest}")
    train, validation = source.training_and_validation()
    assert train == source.pairs()
    assert all(pair.regions is None for pair in train)
    assert not validation


def test_potsdam_names_are_no_numbers() -> None:
    """YAML reads 2_10 as 210 where it is not quoted."""
    for name in ("potsdam_rgb", "potsdam_irrg", "potsdam_rgbir"):
        splits = spec_of(name).splits
        assert len(splits["train"].names) == 24
        assert len(splits["val"].names) == 14
        assert not set(splits["train"].names) & set(splits["val"].names)
        assert all("_" in tile for tile in splits["train"].names)


def test_lists_have_the_published_lengths() -> None:
    assert len(set(spec_of("fbp_gf2").splits["test"].names)) == 30
    assert spec_of("fbp_gf2").splits["test"] == spec_of("gid5").splits["test"]
    assert len(spec_of("vaihingen").splits["train"].names) == 16
    assert len(spec_of("vaihingen").splits["val"].names) == 17
    flair = spec_of("flair1_19").splits
    assert [len(flair[name].groups["domain"]) for name in ("train", "val")] == [32, 8]
    assert sum(len(one.names) for one in spec_of("fbp_cmegacities").domains.values()) == 22
    regions = [r for one in spec_of("openearthmap").domains.values() for r in one.groups["domain"]]
    assert len(set(regions)) == len(regions) > 90


def test_bands_of_other_sensors_are_where_they_should_be() -> None:
    eight, sixteen = spec_of("fbp_gf2"), spec_of("fbp_gf2_16bit")
    assert {b.name: b.wavelength_nm for b in eight.bands} == {
        b.name: b.wavelength_nm for b in sixteen.bands
    }
    ohs = spec_of("whu_ohs").bands
    assert (ohs[13].wavelength_nm, ohs[6].wavelength_nm, ohs[1].wavelength_nm) == (670, 566, 480)


def test_uncertain_things_are_said() -> None:
    for name in ("casid", "fbp_cmegacities", "gid5", "orsi4199", "rescuenet5", "whu_ohs7"):
        assert len(spec_of(name).notes) > 60

"""The papers' experiments: every row resolves, runs by name, and stands beside what was printed."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from dataset_trees import write
from runs import SMALL, rsseg

from rsseg_cli import presets
from rsseg_cli.commands.evaluate.experiment import Experiment, ExperimentRow
from rsseg_cli.commands.fit.job import RunJob
from rsseg_cli.config import RunConfig, resolve
from rsseg_cli.data.resolve_source import parse_source
from rsseg_cli.data.spec.class_map import ClassMap
from rsseg_cli.data.spec.dataset_spec import DatasetSpec
from rsseg_cli.errors import RssegError

NAMES = presets.names("experiments")
QUICK = [
    *SMALL, "--no-pretrained", "--steps", "2", "--set", "training.validate_every=2",
    "--set", "training.log_every=1",
]  # fmt: skip


def spec_of(text: str) -> tuple[DatasetSpec, str | None, str | None]:
    name, split, domain = parse_source(text)
    return presets.read(presets.find("datasets", name)).parse(DatasetSpec), split, domain


def test_every_paper_is_there() -> None:
    assert len(NAMES) == 29
    papers = {name.partition("/")[0] for name in NAMES}
    assert papers == {"crossearth_gate", "earth_adapter", "fishertune", "spectralmoe", "weft"}
    assert {
        "crossearth_gate/casid_sub", "spectralmoe/fbp_cross_sensor", "weft/eorssd",
        "fishertune/gta_to_cityscapes",
    } <= set(NAMES)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_row_resolves_and_every_dataset_is_known(name: str) -> None:
    experiment = ExperimentRow.find(name).experiment
    assert experiment.title
    first = next(iter(experiment.rows))
    assert first in (name.partition("/")[0], experiment.rows[first].method)
    for row in experiment.rows:
        selected = ExperimentRow.find(f"{name}:{row}")
        config = resolve(
            method=selected.table_row.method,
            file=None,
            sources=experiment.src,
            changes=selected.changes(skip={}),
        )
        assert config.data.src == experiment.src
        assert config.data.class_map == experiment.class_map
    for text in (*experiment.src, *experiment.targets.values(), *experiment.unlabelled):
        spec, split, domain = spec_of(text)
        assert split in {*spec.splits, "train", "val"}, text
        if spec.domains and domain:
            assert domain in spec.domains, text


@pytest.mark.parametrize("name", NAMES)
def test_sources_and_targets_speak_of_the_same_classes(name: str) -> None:
    experiment = ExperimentRow.find(name).experiment
    learnt = []
    for text in experiment.src:
        classes = spec_of(text)[0].class_list()
        if experiment.class_map:
            classes = list(ClassMap.read(experiment.class_map).fit(classes, where=text).classes)
        learnt.append([(one.id, one.name) for one in classes])
    assert all(classes == learnt[0] for classes in learnt)
    for text in experiment.targets.values():
        assert [(one.id, one.name) for one in spec_of(text)[0].class_list()] == learnt[0]


@pytest.mark.parametrize("name", NAMES)
def test_sources_hold_the_bands_of_the_targets(name: str) -> None:
    experiment = ExperimentRow.find(name).experiment
    ours = {band.name for band in spec_of(experiment.src[0])[0].bands}
    for text in experiment.targets.values():
        theirs = {band.name for band in spec_of(text)[0].bands}
        assert len(theirs) >= len(ours)
        assert experiment.bands == "position" or ours <= theirs


def settings_of(name: str) -> dict[str, object]:
    """Return the resolved settings of a row by `section.key`, without those of its method."""
    row = ExperimentRow.find(name)
    config = resolve(
        method=row.table_row.method,
        file=None,
        sources=row.experiment.src,
        changes=row.changes(skip={}),
    )
    return {
        f"{section}.{key}": value
        for section, values in config.to_json().items()
        if section not in {"title", "method"}
        for key, value in values.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_rows_differ_only_in_the_method_and_in_what_they_set(name: str) -> None:
    rows = {
        row: (settings_of(f"{name}:{row}"), {text.partition("=")[0] for text in table_row.settings})
        for row, table_row in ExperimentRow.find(name).experiment.rows.items()
    }
    for (row, (ours, set_here)), (other, (theirs, set_there)) in combinations(rows.items(), 2):
        assert set(ours) == set(theirs)
        different = {key for key in ours if ours[key] != theirs[key]}
        assert different <= set_here | set_there, f"{row} and {other}"


def test_rows_set_nothing_but_the_method_its_queries_and_its_learning_rate() -> None:
    of_methods = {"head.query_position", "head.query_content", "optimizer.backbone_lr"}
    for name in NAMES:
        for row, table_row in ExperimentRow.find(name).experiment.rows.items():
            keys = {text.partition("=")[0] for text in table_row.settings}
            recipe = {key for key in keys if not key.startswith("method.")}
            assert recipe <= of_methods, f"{name}:{row}"


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("spectralmoe/fbp_cross_sensor:lora", "augment.scale", [0.6, 1.2]),
        ("spectralmoe/flair:rein", "augment.scale", [0.6, 1.2]),
        ("spectralmoe/openearthmap", "augment.scale", [0.5, 2.0]),
        ("spectralmoe/whu_ohs:frozen", "augment.scale", [1.0, 1.0]),
        ("weft/eorssd:frozen", "optimizer.lr", 5e-5),
        ("weft/orssd:full", "head.width", 96),
        ("weft/orsi4199:frozen", "data.val_fraction", 0.1),
    ],
)
def test_baselines_have_the_recipe_of_their_table(name: str, key: str, value: object) -> None:
    assert settings_of(name)[key] == value


@pytest.mark.parametrize(
    ("paper", "rank"), [("crossearth_gate", 64), ("earth_adapter", 64), ("fishertune", 8)]
)
def test_lora_has_the_rank_of_the_paper(paper: str, rank: int) -> None:
    """6.4 M parameters beside CrossEarth-Gate and 0.79 M beside FisherTune."""
    for name in NAMES:
        row = ExperimentRow.find(name).experiment.rows.get("lora")
        if name.startswith(paper) and row is not None:
            assert row.settings == (f"method.rank={rank}", f"method.alpha={rank}.0"), name


def test_potsdam_to_vaihingen_changes_the_bands() -> None:
    experiment = ExperimentRow.find("spectralmoe/potsdam_to_vaihingen").experiment
    assert [band.name for band in spec_of(experiment.src[0])[0].bands] == ["red", "green", "blue"]
    assert experiment.bands == "position"


def test_printed_numbers() -> None:
    """Numbers copied by hand from the tables, not from the presets."""
    printed = {
        ("crossearth_gate/casid_sub", "mean"): 60.6,
        ("crossearth_gate/casid_tem", "trf"): 60.3,
        ("spectralmoe/fbp_cross_sensor", "sensors"): 66.19,
        ("spectralmoe/fbp_cross_sensor:frozen", "sensors"): 55.54,
        ("spectralmoe/fbp_cross_sensor:no_experts", "sensors"): 63.41,
        ("spectralmoe/openearthmap", "mean"): 68.57,
        ("spectralmoe/potsdam_to_vaihingen:rein", "vaihingen"): 60.54,
        ("spectralmoe/openearthmap:rein", "mean"): 66.76,
        ("crossearth_gate/casid_trf:adaptformer", "mean"): 61.8,
        ("crossearth_gate/casid_tms:no_selection", "mean"): 57.3,
        ("weft/orssd", "orssd"): 89.64,
        ("weft/eorssd:base", "eorssd"): 76.9,
        ("fishertune/gta_to_cityscapes", "cityscapes"): 68.2,
        ("fishertune/gta_to_mapillary:full", "mapillary"): 64.2,
        ("fishertune/gta_to_bdd100k:childtune", "bdd100k"): 59.3,
        ("fishertune/cityscapes_to_acdc:domain", "acdc"): 76.1,
        ("fishertune/cityscapes_to_acdc:rein", "acdc"): 77.6,
        ("fishertune/cityscapes_to_bdd100k:random_v", "bdd100k"): 63.2,
        ("earth_adapter/loveda_rural_to_urban", "urban"): 59.02,
    }
    for (name, target), value in printed.items():
        row = ExperimentRow.find(name).table_row
        assert (row.mean if target == "mean" else row.published[target]) == value, name


def test_what_was_never_published_is_said() -> None:
    for name in ("spectralmoe/fbp_cross_region", "spectralmoe/openearthmap", "spectralmoe/whu_ohs"):
        assert "never published" in ExperimentRow.find(name).experiment.notes


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("targets: {a: 'x:test'}\nrows: {m: {method: lora, published: {b: 1}, source: s}}", "b is"),
        ("targets: {a: 'x:test'}\nrows: {m: {method: lora, published: {a: 1}}}", "need a source"),
        ("targets: {}\nrows: {m: {method: lora}}", "targets"),
        ("targets: {a: 'x:test'}\nrows: {m: {metod: lora}}", "metod"),
    ],
)
def test_mistakes_in_an_experiment_are_named(text: str, what: str) -> None:
    whole = f"title: t\npaper: p\nsrc: [x]\n{text}\n"
    with pytest.raises(RssegError, match=what):
        presets.read_text(whole, Path("e.yaml")).parse(Experiment)


# --- on the command line --------------------------------------------------------------------------


def test_an_experiment_fits_and_is_scored_beside_the_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("casid",):
        write(name, tmp_path)
    name = "crossearth_gate/casid_sub:lora"
    call = rsseg("fit", "--experiment", name, "--data-root", tmp_path, *QUICK)
    assert call.code == 0, call.err
    assert Path("runs/crossearth_gate-casid_sub-lora/model.safetensors").is_file()
    call = rsseg(
        "evaluate", "--experiment", name, "--data-root", tmp_path, "--device", "cpu", "--json"
    )
    assert call.code == 1
    assert "tem" in call.err, "targets that are not on disk are named before anything is computed"


def test_potsdam_to_rescuenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("potsdam_irrg", tmp_path)
    write("rescuenet5", tmp_path)
    name = "crossearth_gate/potsdam_irrg_to_rescuenet"
    call = rsseg("fit", "--experiment", f"{name}:frozen", "--data-root", tmp_path, "--output", "r",
                 *QUICK)  # fmt: skip
    assert call.code == 0, call.err
    call = rsseg("evaluate", "--experiment", name, "--model", "r", "--data-root", tmp_path,
                 "--device", "cpu", "--json", "--report", "out")  # fmt: skip
    assert call.code == 0, call.err
    (line,) = call.document["targets"]
    assert line["published"] == pytest.approx(0.586)
    assert line["difference"] == pytest.approx(line["miou"] - 0.586)
    assert len(call.document["scores"]["rescuenet"]["classes"]) == 5
    assert Path("out/experiment.json").is_file()
    assert Path("out/rescuenet/report.html").is_file()
    shown = rsseg("evaluate", "--experiment", name, "--model", "r", "--data-root", tmp_path,
                  "--device", "cpu")  # fmt: skip
    assert "58.6" in shown.out
    assert "replace infrared" in " ".join(shown.out.split())


def test_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call = rsseg("fit", "--experiment", "weft/eorsd")
    assert call.code == 1
    assert "weft/eorssd" in call.err
    call = rsseg("fit", "--experiment", "weft/eorssd:sea")
    assert "see" in call.err
    call = rsseg("fit", "--experiment", "weft/eorssd", "--src", "loveda")
    assert "--src cannot be combined with --experiment" in call.err
    call = rsseg("evaluate", "--experiment", "weft/eorssd")
    assert "there is no run of weft/eorssd" in call.err


def test_options_win_over_the_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[RunConfig] = []

    def stop(config: RunConfig, *options: object) -> RunJob:
        configs.append(config)
        raise RssegError("not prepared")

    monkeypatch.setattr("rsseg_cli.commands.fit.fit.prepare_fit", stop)
    fit = ["fit", "--experiment", "weft/eorssd", "--device", "cpu"]
    rsseg(*fit)
    rsseg(*fit, "--steps", "3")
    rsseg(*fit, "--steps", "3", "--set", "training.steps=5")
    preset, option, setting = (config.training.steps for config in configs)
    assert preset > option == 3
    assert setting == 5

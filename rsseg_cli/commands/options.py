"""Options of the command line, declared as annotated fields of dataclasses.

A command's options are one frozen dataclass. Each field is annotated with its type and an `Option`,
and the command line is built from these fields (`rsseg_cli.cli.command`). Options that several
commands share are declared here, once, in a class that those commands inherit from.

Only light modules are imported here, so that `--help` stays instant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import get_annotations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from rsseg_cli.choices import Format
from rsseg_cli.errors import RssegError

if TYPE_CHECKING:
    from rsseg_cli.presets import PresetKind

DATA, MODEL, TRAINING, OUTPUT, RUNNING, ADVANCED = PANELS = (
    "Data",
    "Model",
    "Training",
    "Output",
    "Running",
    "Advanced",
)
"""Panels of the help, in the order in which they are printed."""


@dataclass(frozen=True)
class Option:
    """How a field of an options class appears on the command line.

    Attributes:
        help: One short sentence.
        panel: Panel of the help that lists the option.
        name: Long name with `--`; made from the field's name if empty.
        short: One-letter name with `-`.
        metavar: Placeholder of the value; made from the field's type if empty.
        default: Description of the default, where the default is None.
        setting: `section.key` of the run's settings that the option changes.
        minimum: Smallest value.
        maximum: Largest value.
        envvar: Environment variable that gives the value.
        complete: Returns the values that start with the typed text, for shell completion.
    """

    help: str
    panel: str
    name: str = ""
    short: str = ""
    metavar: str = ""
    default: str = ""
    setting: str = ""
    minimum: float | None = None
    maximum: float | None = None
    envvar: str | None = None
    complete: Callable[[str], list[str]] | None = None


class Argument(Option):
    """How a field appears on the command line if it is positional; it has no name and panel."""


def declared(options: type) -> dict[str, tuple[Any, Option]]:
    """Return the type and the declaration of every field of an options class, by field name.

    The fields of a class come before those of the classes that it inherits from.
    """
    types, annotated = get_type_hints(options), get_type_hints(options, include_extras=True)
    names = (name for owner in options.__mro__ for name in get_annotations(owner))
    return {name: (types[name], annotated[name].__metadata__[0]) for name in names}


def setting_changes(options: Any) -> list[str]:
    """Return `section.key=value` for every option that was given and changes a setting."""
    values = {
        option.setting: getattr(options, name)
        for name, (_, option) in declared(type(options)).items()
        if option.setting
    }
    return [
        f"{key}={value}"
        for key, value in values.items()
        if value is not None and value is not False
    ]


def parse_bands(text: str | None) -> list[int] | None:
    """Read the value of `--bands`: file bands from 1, or None if it was not given.

    Raises:
        RssegError: The text is not a list of integers.
    """
    if text is None:
        return None
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise RssegError(
            f"--bands {text} is not a list of numbers", where="--bands", fix="e.g. 4,3,2,1"
        ) from error


def require_unused(options: Mapping[str, object], reason: str) -> None:
    """Raise an error that names the options that were given although they have no effect.

    Args:
        options: Values by option name; those that are None, False or empty were not given.
        reason: Completes the sentence "--option does nothing ...".

    Raises:
        RssegError: One of the options was given.
    """
    used = [name for name, value in options.items() if value]
    if used:
        raise RssegError(f"{used[0]} does nothing {reason}", fix=f"leave out {' and '.join(used)}")


def require_alone(options: Mapping[str, object]) -> None:
    """Raise an error if an option was given that `--experiment` sets itself.

    Raises:
        RssegError: One of the options was given.
    """
    used = [name for name, value in options.items() if value]
    if used:
        raise RssegError(
            f"{', '.join(used)} and --experiment exclude each other",
            where="--experiment",
            fix="the experiment sets method, data and targets; --set changes single settings",
        )


# --- shell completion ----------------------------------------------------------------------------


def complete_presets(kind: PresetKind) -> Callable[[str], list[str]]:
    """Return a function that completes the names of presets of a kind."""

    def complete(incomplete: str) -> list[str]:
        from rsseg_cli import presets

        return [name for name in presets.names(kind) if name.startswith(incomplete)]

    return complete


def complete_backbone(incomplete: str) -> list[str]:
    """Return the names of backbones that start with the typed text."""
    from rsseg_cli.find import backbone_names

    return [name for name in backbone_names() if name.startswith(incomplete)]


def complete_source(incomplete: str) -> list[str]:
    """Return the dataset presets and folders that start with the typed text."""
    folders = [str(path) for path in Path().glob(f"{incomplete}*") if path.is_dir()]
    return complete_presets("datasets")(incomplete) + folders


# --- options of several commands -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class JsonOption:
    """Machine-readable output."""

    as_json: Annotated[
        bool, Option("Print one JSON object to stdout and nothing else.", RUNNING, "--json")
    ] = False


@dataclass(frozen=True, kw_only=True)
class QuietOption:
    """Progress on stderr."""

    quiet: Annotated[bool, Option("Show no progress.", RUNNING, short="-q")] = False


@dataclass(frozen=True, kw_only=True)
class OverwriteOption:
    """Existing output."""

    overwrite: Annotated[bool, Option("Replace existing output.", RUNNING)] = False


@dataclass(frozen=True, kw_only=True)
class DeviceOption:
    """Device of the model."""

    device: Annotated[
        str, Option("Device: auto, cpu, cuda or cuda:N.", RUNNING, metavar="DEVICE")
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class DataRootOption:
    """Location of the datasets that have a preset."""

    data_root: Annotated[
        Path | None, Option("Folder that holds the preset datasets.", DATA, envvar="RSSEG_DATA")
    ] = None


@dataclass(frozen=True, kw_only=True)
class SourcesOption:
    """Labelled data."""

    src: Annotated[
        tuple[str, ...],
        Option(
            "Folder, dataset.yaml or preset[:split[:domain]]; repeatable.",
            DATA,
            short="-s",
            metavar="DATASET",
            complete=complete_source,
        ),
    ] = ()


@dataclass(frozen=True, kw_only=True)
class ClassMapOption:
    """Conversion between the classes of datasets."""

    class_map: Annotated[
        str | None,
        Option(
            "Class map: a preset or a YAML file.",
            DATA,
            setting="data.class_map",
            complete=complete_presets("maps"),
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ExperimentOption:
    """Published experiments."""

    experiment: Annotated[
        str | None,
        Option(
            "Published experiment, e.g. weft/eorssd.",
            ADVANCED,
            complete=complete_presets("experiments"),
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class BandsOptions:
    """Bands and missing pixels of scenes."""

    bands: Annotated[
        str | None,
        Option(
            "File bands in the model's order, e.g. 4,3,2,1.",
            DATA,
            metavar="N,N,...",
        ),
    ] = None
    nodata: Annotated[
        float | None, Option("Nodata value, instead of the value in the file.", DATA)
    ] = None


@dataclass(frozen=True, kw_only=True)
class FittedModelOption:
    """Trained model."""

    model: Annotated[
        Path | None, Option("Run folder or model file.", MODEL, default="newest run")
    ] = None


@dataclass(frozen=True, kw_only=True)
class WeightsOption:
    """Local weights of the backbone."""

    weights: Annotated[Path | None, Option("Local weights file of the backbone.", ADVANCED)] = None


@dataclass(frozen=True, kw_only=True)
class PrecisionOption:
    """Number format of the forward pass."""

    precision: Annotated[
        Format | None,
        Option(
            "Number format.",
            ADVANCED,
            default="as configured",
            setting="training.precision",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class OverlapOption:
    """Overlap of the tiles of a scene."""

    overlap: Annotated[
        float,
        Option("Fraction of a tile that overlaps the next.", RUNNING, minimum=0.0, maximum=0.5),
    ] = 0.25


@dataclass(frozen=True, kw_only=True)
class TilingOptions(OverlapOption):
    """Tiles of a scene that is mapped."""

    tile: Annotated[
        int | None,
        Option("Side of a tile in pixels.", RUNNING, default="as in training", minimum=8),
    ] = None
    batch: Annotated[
        int | None, Option("Tiles per forward pass.", RUNNING, default="automatic", minimum=1)
    ] = None


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(
    SourcesOption,
    DataRootOption,
    OverwriteOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    WeightsOption,
):
    """Options that `fit` and `adapt` share."""

    method: Annotated[
        str | None,
        Option(
            "Method preset; see rsseg presets list.",
            MODEL,
            short="-m",
            complete=complete_presets("methods"),
        ),
    ] = None
    backbone: Annotated[
        str | None,
        Option(
            "Backbone, e.g. dinov3_base.",
            MODEL,
            default="as configured",
            complete=complete_backbone,
        ),
    ] = None
    head: Annotated[str | None, Option("Head, e.g. linear.", MODEL, default="as configured")] = None
    steps: Annotated[
        int | None,
        Option("Optimizer steps.", TRAINING, default="as configured", setting="training.steps"),
    ] = None
    batch: Annotated[
        int | None,
        Option("Tiles per step.", TRAINING, default="as configured", setting="training.batch"),
    ] = None
    tile: Annotated[
        int | None,
        Option("Side of a tile in pixels.", TRAINING, default="as configured", setting="data.tile"),
    ] = None
    seed: Annotated[
        int | None,
        Option("Random seed.", TRAINING, default="as configured", setting="training.seed"),
    ] = None
    output: Annotated[
        Path | None,
        Option("Folder of the run.", RUNNING, short="-o", default="runs/METHOD-DATA"),
    ] = None
    resume: Annotated[bool, Option("Continue an interrupted run.", RUNNING)] = False
    max_time: Annotated[
        str | None,
        Option("Stop before this time is over: 90m, 1h30m, [D-]HH:MM:SS.", RUNNING, metavar="TIME"),
    ] = None
    dry_run: Annotated[bool, Option("Print the plan without training.", RUNNING)] = False
    config: Annotated[
        Path | None, Option("config.yaml of an earlier run, instead of a preset.", ADVANCED)
    ] = None
    settings: Annotated[
        tuple[str, ...],
        Option(
            "Change a setting, e.g. method.rank=8; repeatable.",
            ADVANCED,
            "--set",
            metavar="KEY=VALUE",
        ),
    ] = ()
    no_pretrained: Annotated[bool, Option("Initialise the backbone at random.", ADVANCED)] = False

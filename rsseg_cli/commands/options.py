"""Options of the command line, declared as fields of dataclasses.

The options of a command are one frozen dataclass, whose fields are made by `option` or `argument`:
type, default, help, panel. The command line is built from them by `rsseg_cli.cli.command`.
Options that several commands share are declared here, in classes that those commands inherit from.

Only light modules are imported here, so that `--help` stays instant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rsseg_cli.choices import Format
from rsseg_cli.errors import RssegError

if TYPE_CHECKING:
    from rsseg_cli.presets import PresetKind

T = TypeVar("T")

PANELS = ("Data", "Model", "Training", "Output", "Running", "Advanced")
"""Panels of the help, in the order in which they are printed."""
DATA, MODEL, TRAINING, OUTPUT, RUNNING, ADVANCED = PANELS
CONFIGURED = "as configured"
"""Shown as the default of options that replace a setting of the preset or the model."""


def option(
    default: T, help: str, panel: str, *flags: str, setting: str = "", **typer_arguments: Any
) -> T:
    """Declare an option of a command as a field of its dataclass.

    Args:
        default: Value if the option is not given.
        help: One short sentence.
        panel: Panel of the help that lists the option.
        flags: Names of the option; `--field-name` is added if there is no long one.
        setting: `section.key` of the run's settings that the option replaces.
        typer_arguments: Further arguments of `typer.Option`.
    """
    typer_arguments |= {"help": help, "rich_help_panel": panel}
    metadata = {"flags": flags, "setting": setting, "typer": typer_arguments}
    return field(default=default, metadata=metadata)


def argument(help: str, default: Any = MISSING, **typer_arguments: Any) -> Any:
    """Declare a positional argument of a command as a field of its dataclass.

    Args:
        help: One short sentence.
        default: Value if the argument is not given; without one it is required.
        typer_arguments: Further arguments of `typer.Argument`.
    """
    return field(default=default, metadata={"typer": {"help": help, **typer_arguments}})


def parse_bands(text: str | None) -> list[int] | None:
    """Parse the value of `--bands`: file bands from 1, or None if it was not given.

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
    """Raise an error if one of the options was given: they have no effect here.

    Args:
        options: Values by option name; those that are None, False or empty were not given.
        reason: Completes the sentence "--option does nothing ...".
    """
    used = [name for name, value in options.items() if value]
    if used:
        raise RssegError(f"{used[0]} does nothing {reason}", fix=f"leave out {' and '.join(used)}")


def require_alone(options: Mapping[str, object]) -> None:
    """Raise an error if one of the options was given: `--experiment` sets them itself."""
    used = [name for name, value in options.items() if value]
    if used:
        raise RssegError(
            f"{', '.join(used)} cannot be combined with --experiment",
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

    as_json: bool = option(False, "Print one JSON object and nothing else.", RUNNING, "--json")


@dataclass(frozen=True, kw_only=True)
class DeviceOption(JsonOption):
    """Device of the model, and output of what was computed there."""

    device: str = option("auto", "Device: auto, cpu, cuda or cuda:N.", RUNNING, metavar="DEVICE")


@dataclass(frozen=True, kw_only=True)
class ProgressOptions(DeviceOption):
    """Options of commands that run for long."""

    quiet: bool = option(False, "Show no progress.", RUNNING, "-q")

    @property
    def silent(self) -> bool:
        """True if no progress is shown: with `--quiet` and `--json`."""
        return self.quiet or self.as_json


@dataclass(frozen=True, kw_only=True)
class OverwriteOption:
    """Replacement of output."""

    overwrite: bool = option(False, "Replace existing output.", RUNNING)


@dataclass(frozen=True, kw_only=True)
class DataRootOption:
    """Location of the datasets that have a preset."""

    data_root: Path | None = option(
        None, "Folder that holds the preset datasets.", DATA, envvar="RSSEG_DATA"
    )


@dataclass(frozen=True, kw_only=True)
class SourcesOption:
    """Labelled data."""

    src: tuple[str, ...] = option(
        (), "Folder, dataset.yaml or preset[:split[:domain]]; repeatable.", DATA,
        "--src", "-s", metavar="DATASET", autocompletion=complete_source,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClassMapOption:
    """Conversion between the classes of datasets."""

    class_map: str | None = option(
        None, "Class map: a preset or a YAML file.", DATA,
        setting="data.class_map", autocompletion=complete_presets("maps"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExperimentOption:
    """Experiment of a paper."""

    experiment: str | None = option(
        None, "Published experiment, e.g. weft/eorssd.", ADVANCED,
        autocompletion=complete_presets("experiments"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BandsOptions:
    """Bands and missing pixels of scenes."""

    bands: str | None = option(
        None, "File bands in the model's order, e.g. 4,3,2,1.", DATA, metavar="N,N,..."
    )
    nodata: float | None = option(None, "Nodata value, instead of the value in the file.", DATA)


@dataclass(frozen=True, kw_only=True)
class FittedModelOption:
    """Trained model."""

    model: Path | None = option(None, "Run folder or model file.", MODEL, show_default="newest run")


@dataclass(frozen=True, kw_only=True)
class WeightsOption:
    """Local weights of the backbone."""

    weights: Path | None = option(None, "Local weights file of the backbone.", ADVANCED)


@dataclass(frozen=True, kw_only=True)
class PrecisionOption:
    """Number format of the forward pass."""

    precision: Format | None = option(
        None, "Number format.", ADVANCED, setting="training.precision", show_default=CONFIGURED
    )


@dataclass(frozen=True, kw_only=True)
class OverlapOption:
    """Overlap of the tiles of a scene."""

    overlap: float = option(
        0.25, "Fraction of a tile that overlaps the next.", RUNNING, min=0.0, max=0.5
    )


@dataclass(frozen=True, kw_only=True)
class TilingOptions(OverlapOption):
    """Tiles of a scene that is mapped."""

    tile: int | None = option(
        None, "Side of a tile in pixels.", RUNNING, min=8, show_default="as in training"
    )
    batch: int | None = option(
        None, "Tiles per forward pass.", RUNNING, min=1, show_default="automatic"
    )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(
    SourcesOption, DataRootOption, OverwriteOption, ProgressOptions, WeightsOption
):
    """Options that `fit` and `adapt` share."""

    method: str | None = option(
        None, "Method preset; see rsseg presets list.", MODEL, "--method", "-m",
        autocompletion=complete_presets("methods"),
    )  # fmt: skip
    backbone: str | None = option(
        None, "Backbone, e.g. dinov3_base.", MODEL,
        show_default=CONFIGURED, autocompletion=complete_backbone,
    )  # fmt: skip
    head: str | None = option(None, "Head, e.g. linear.", MODEL, show_default=CONFIGURED)
    steps: int | None = option(
        None, "Optimizer steps.", TRAINING, setting="training.steps", show_default=CONFIGURED
    )
    batch: int | None = option(
        None, "Tiles per step.", TRAINING, setting="training.batch", show_default=CONFIGURED
    )
    tile: int | None = option(
        None, "Side of a tile in pixels.", TRAINING, setting="data.tile", show_default=CONFIGURED
    )
    seed: int | None = option(
        None, "Random seed.", TRAINING, setting="training.seed", show_default=CONFIGURED
    )
    output: Path | None = option(
        None, "Folder of the run.", RUNNING, "-o", show_default="runs/METHOD-DATA"
    )
    resume: bool = option(False, "Continue an interrupted run.", RUNNING)
    max_time: str | None = option(
        None, "Stop before this time is over: 90m, 1h30m, [D-]HH:MM:SS.", RUNNING, metavar="TIME"
    )
    dry_run: bool = option(False, "Print the plan without training.", RUNNING)
    config: Path | None = option(
        None, "config.yaml of an earlier run, instead of a preset.", ADVANCED
    )
    settings: tuple[str, ...] = option(
        (), "Change a setting, e.g. method.rank=8; repeatable.", ADVANCED,
        "--set", metavar="KEY=VALUE",
    )  # fmt: skip
    no_pretrained: bool = option(False, "Initialise the backbone at random.", ADVANCED)

    def replaced_settings(self) -> dict[str, Any]:
        """Return the values of the options that replace settings, by `section.key`.

        A value is None or False if the option was not given.
        """
        return {
            declared.metadata["setting"]: getattr(self, declared.name)
            for declared in fields(self)
            if declared.metadata["setting"]
        }

    def changes(self) -> list[str]:
        """Return changes of settings, `section.key=value`; those of `--set` come last and win."""
        replaced = self.replaced_settings().items()
        given = [f"{k}={v}" for k, v in replaced if v is not None and v is not False]
        return [*given, *self.settings]

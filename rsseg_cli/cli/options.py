"""Options that several commands share, and how they answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rsseg_cli.commands.fit.job import RunJob
    from rsseg_cli.presets import Kind


def _complete(kind: Kind) -> Callable[[str], list[str]]:
    def choices(typed: str) -> list[str]:
        from rsseg_cli import presets

        return [name for name in presets.names(kind) if name.startswith(typed)]

    return choices


def complete_backbone(typed: str) -> list[str]:
    """Complete the name of a backbone."""
    from rsseg_cli.find import backbone_names

    return [name for name in backbone_names() if name.startswith(typed)]


def _complete_source(typed: str) -> list[str]:
    folders = [str(path) for path in Path().glob(f"{typed}*") if path.is_dir()]
    return _complete("datasets")(typed) + folders


Method = Annotated[
    str | None,
    typer.Option("--method", "-m", help="Method preset.", autocompletion=_complete("methods")),
]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        "--src",
        "-s",
        help="Labelled data: a folder with images/ and labels/, a dataset.yaml, or a dataset "
        "preset; `:split` and `:split:domain` narrow it. May be repeated.",
        autocompletion=_complete_source,
    ),
]
ClassMap = Annotated[
    str | None,
    typer.Option(
        "--class-map",
        help="Turns classes into others: a preset or a file (see presets/maps).",
        autocompletion=_complete("maps"),
    ),
]
Experiment = Annotated[
    str | None,
    typer.Option(
        "--experiment",
        help="A paper's experiment, e.g. weft/eorssd, or a row of it, e.g. weft/eorssd:see.",
        autocompletion=_complete("experiments"),
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", envvar="RSSEG_DATA", help="Where dataset presets lie."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one setting, e.g. method.rank=8. May be repeated."),
]
Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda or cuda:N (auto takes a GPU if any).")
]
NoPretrained = Annotated[
    bool, typer.Option("--no-pretrained", help="Start the backbone at random.")
]
MovedWeights = Annotated[
    Path | None, typer.Option("--weights", help="Weights file of the backbone, if it has moved.")
]
Bands = Annotated[
    str | None, typer.Option("--bands", help="File bands in the model's order, e.g. 4,3,2,1.")
]
Nodata = Annotated[
    float | None,
    typer.Option("--nodata", help="Value of missing pixels, in place of the file's own."),
]
Tile = Annotated[int | None, typer.Option("--tile", help="Side of a tile in pixels.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of all random numbers.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop before training.")]
MaxTime = Annotated[
    str | None,
    typer.Option(
        "--max-time",
        help="Stop before so much time is over, ready for --resume, for batch queues: 8h, 90m, "
        "1h30m, HH:MM:SS or D-HH:MM:SS.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def overlap(panel: str | None = None) -> Any:
    """Make the option for how far tiles overlap.

    Args:
        panel: Where the help shows it.
    """
    return typer.Option(
        "--overlap",
        help="Share of a tile that overlaps its neighbour.",
        min=0.0,
        max=0.5,
        rich_help_panel=panel,
    )


def changes(short: Mapping[str, object]) -> list[str]:
    """Write what was given of some options as `section.key=value`."""
    return [f"{key}={value}" for key, value in short.items() if value is not None]


def show_plan(job: RunJob, as_json: bool) -> None:
    """Print what a fit would do, once however many processes there are."""
    from rsseg_cli import distributed

    if distributed.leads():
        answer(job.plan.document()) if as_json else job.plan.show()


def answer(result: Any) -> None:
    """Print one JSON object on stdout."""
    typer.echo(json.dumps(result, indent=2))

"""`rsseg fit`: a method, a source, a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rsseg_cli.cli import options


def fit(
    method: options.Method = None,
    src: options.Sources = None,
    experiment: options.Experiment = None,
    class_map: options.ClassMap = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="A run's config.yaml instead of a preset.")
    ] = None,
    data_root: options.DataRoot = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", "-o", help="Folder of the run; runs/METHOD-SOURCE if not given."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Backbone instead of the preset's, e.g. dinov3_base.",
            autocompletion=options.complete_backbone,
        ),
    ] = None,
    head: Annotated[str | None, typer.Option(help="Head instead of the preset's.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights file of the backbone instead of the hub's.")
    ] = None,
    no_pretrained: options.NoPretrained = False,
    steps: Annotated[int | None, typer.Option(help="Number of updates.")] = None,
    batch: Annotated[int | None, typer.Option(help="Tiles per update.")] = None,
    tile: options.Tile = None,
    seed: options.Seed = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, bf16, fp16 or fp32 matrix products.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the model before the first step.")
    ] = False,
    settings: options.Settings = None,
    resume: options.Resume = False,
    max_time: options.MaxTime = None,
    dry_run: options.DryRun = False,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Fit a model on labelled scenes.

    Prints the path of the model file; everything else goes to stderr.

    Example: rsseg fit --method lora --src my_city/
    """
    from rsseg_cli.training.deadline import Deadline

    deadline = Deadline.parse(max_time)  # the time for loading counts, too
    from rsseg_cli import config as configs
    from rsseg_cli import distributed
    from rsseg_cli.commands.fit import fit as runs
    from rsseg_cli.commands.fit import job as jobs

    changes: list[str] = []
    if experiment is not None:
        from rsseg_cli.commands.evaluate.experiment import Chosen, require_alone

        require_alone(
            {"--method": method, "--src": src, "--config": config, "--class-map": class_map}
        )
        chosen = Chosen.find(experiment)
        method, src, run = chosen.row.method, list(chosen.experiment.src), run or chosen.folder
        changes += chosen.changes(skip={"backbone": backbone, "head": head})
        for remark in chosen.remarks():
            typer.echo(f"note: {remark}", err=True)
    changes += settings or ()
    changes += [] if class_map is None else [f"data.class_map={class_map}"]
    short: dict[str, object] = {
        "training.steps": steps,
        "training.batch": batch,
        "training.seed": seed,
        "training.precision": precision,
        "training.compile": "true" if compiled else None,
        "data.tile": tile,
    }
    changes += options.changes(short)
    settled = configs.resolve(
        method=method,
        file=config,
        sources=src or [],
        backbone=backbone,
        head=head,
        weights=weights,
        pretrained=not no_pretrained,
        changes=changes,
    )
    with distributed.group(device):
        job = runs.prepare_fit(
            settled,
            jobs.RunOptions(
                data_root=data_root,
                folder=run,
                device=device,
                resume=resume,
                overwrite=overwrite,
                deadline=deadline,
                quiet=quiet or as_json,
            ),
        )
        if dry_run:
            options.show_plan(job, as_json)
            return
        report = jobs.run(job)
        if distributed.leads():
            options.answer(report.document()) if as_json else typer.echo(report.model)

"""`rsseg adapt`: a model, scenes without labels, a model that is better there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rsseg_cli.cli import options


def adapt(
    tgt: Annotated[
        list[str] | None,
        typer.Option(
            "--tgt",
            "-t",
            help="Scenes without labels: files, folders, quoted patterns, or a dataset (its "
            "labels teach nothing). May be repeated.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", help="Run folder or model file to start from; the newest run if none."
        ),
    ] = None,
    method: options.Method = None,
    src: options.Sources = None,
    source_free: Annotated[
        bool, typer.Option("--source-free", help="Learn from the target alone.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option("--config", help="The config.yaml of an earlier adapt.")
    ] = None,
    data_root: options.DataRoot = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", "-o", help="Folder of the run; runs/METHOD-SOURCE-to-TARGET if not given."
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Backbone instead of the preset's, with --method.",
            autocompletion=options.complete_backbone,
        ),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="Head instead of the preset's, with --method.")
    ] = None,
    weights: options.MovedWeights = None,
    no_pretrained: options.NoPretrained = False,
    bands: options.Bands = None,
    nodata: options.Nodata = None,
    gsd: Annotated[
        float | None, typer.Option("--gsd", help="Resample the scenes to pixels of M metres.")
    ] = None,
    report_labels: Annotated[
        bool,
        typer.Option(
            "--report-labels",
            help="Score validations on the target's labels too: reported, never used.",
        ),
    ] = False,
    steps: Annotated[
        int | None, typer.Option(help="Number of updates; with --model a quarter of the fit's.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Tiles per update, half of them of the target.")
    ] = None,
    tile: options.Tile = None,
    seed: options.Seed = None,
    settings: options.Settings = None,
    resume: options.Resume = False,
    max_time: options.MaxTime = None,
    dry_run: options.DryRun = False,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Adapt a model to your own area, from scenes without labels.

    Prints the path of the model file; everything else goes to stderr.

    Examples: rsseg adapt --model runs/lora-my_city --tgt scenes/

    rsseg adapt --method lora --src my_city/ --tgt scenes/
    """
    from rsseg_cli.training.deadline import Deadline

    deadline = Deadline.parse(max_time)  # the time for loading counts, too
    from rsseg_cli import distributed
    from rsseg_cli.commands.adapt import adapt as runs
    from rsseg_cli.commands.adapt import remarks
    from rsseg_cli.commands.adapt import settings as adapt_config
    from rsseg_cli.commands.fit import job as jobs

    short = {
        "training.steps": steps,
        "training.batch": batch,
        "data.tile": tile,
        "training.seed": seed,
        "adapt.nodata": nodata,
        "adapt.gsd_m": gsd,
        "adapt.bands": None if bands is None else f"[{bands}]",
        "adapt.report_labels": True if report_labels else None,
        "adapt.source_free": True if source_free else None,
        "backbone.weights": None if weights is None else weights.resolve(),
    }
    settled = adapt_config.resolve(
        model=model,
        method=method,
        file=config,
        sources=src or (),
        targets=tgt or (),
        backbone=backbone,
        head=head,
        pretrained=not no_pretrained,
        changes=[*options.changes(short), *(settings or ())],
    )
    with distributed.group(device):
        job = runs.prepare_adapt(
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
        if not distributed.leads():
            return
        early = remarks.stopped(report.result)
        if early is not None:
            typer.echo(f"warning: {early}; the best model before is kept", err=True)
        options.answer(remarks.document(report)) if as_json else typer.echo(report.model)

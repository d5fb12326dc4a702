"""`rsseg bench`: measures speed on this machine."""

from __future__ import annotations

import typer

from rsseg_cli.cli.command import Command, Group, command, print_json
from rsseg_cli.commands.bench.options import BenchFitOptions, BenchPredictOptions

app = typer.Typer(cls=Group, help="Measure speed on this machine.", no_args_is_help=True)


@app.command("predict", cls=Command)
@command
def predict(options: BenchPredictOptions) -> None:
    """Compare `predict` with bare forward passes, and a null model with a file copy.

    Example: rsseg bench predict --model runs/my-run
    """
    from rsseg_cli.commands.bench.predict import bench_predict, show

    result = bench_predict(options)
    print_json(result) if options.as_json else show(result)


@app.command("fit", cls=Command)
@command
def fit(options: BenchFitOptions) -> None:
    """Compare the training loop with a bare loop, and each method's step with a frozen backbone's.

    Weights are random. Example: rsseg bench fit --src my_city/ --method lora
    """
    from rsseg_cli.commands.bench.fit import bench_fit, show

    result = bench_fit(options)
    print_json(result) if options.as_json else show(result)

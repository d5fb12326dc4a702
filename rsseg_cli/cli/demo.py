"""`rsseg demo`: trains and maps on generated data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rsseg_cli.cli.command import command, print_json
from rsseg_cli.commands.options import OUTPUT, RUNNING, OverwriteOption, ProgressOptions, option


@dataclass(frozen=True, kw_only=True)
class DemoOptions(OverwriteOption, ProgressOptions):
    """Options of `rsseg demo`."""

    output: Path = option(
        Path("rsseg-demo"), "Folder for the data, the run and the map.", OUTPUT, "-o"
    )
    seed: int = option(42, "Seed of the data and of the training.", RUNNING)


@command
def demo(options: DemoOptions) -> None:
    """Generate data, train a model, map a scene of another region, and score the map.

    Takes less than a minute on two free CPU cores, offline. Two regions differ in season, haze and
    texture: the model is trained on the northern region and maps the southern one.
    """
    from rsseg_cli.demo import guide

    result = guide.run(
        options.output,
        seed=options.seed,
        device=options.device,
        overwrite=options.overwrite,
        quiet=options.silent,
    )
    print_json(result.to_json()) if options.as_json else result.show()

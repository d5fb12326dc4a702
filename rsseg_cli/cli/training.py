"""Runs the trainings of `rsseg fit` and `rsseg adapt`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rsseg_cli.cli.command import print_json
from rsseg_cli.commands.options import TrainingOptions

if TYPE_CHECKING:
    from rsseg_cli.commands.fit.job import FitReport, RunJob
    from rsseg_cli.config import RunConfig
    from rsseg_cli.training.deadline import Deadline


def train(
    prepare: Callable[[RunConfig, TrainingOptions, Deadline], RunJob],
    config: RunConfig,
    options: TrainingOptions,
    deadline: Deadline,
) -> FitReport | None:
    """Run a training, or print its plan on `--dry-run`.

    Returns:
        The result on rank 0; None on other ranks and after a dry run.
    """
    from rsseg_cli import distributed
    from rsseg_cli.commands.fit.job import run
    from rsseg_cli.commands.fit.run_folder_checks import since_first_attempt

    with distributed.group(options.device):
        job = prepare(config, options, since_first_attempt(deadline))
        if options.dry_run:
            if distributed.is_main():
                print_json(job.plan) if options.as_json else job.plan.show()
            return None
        report = run(job)
        return report if distributed.is_main() else None

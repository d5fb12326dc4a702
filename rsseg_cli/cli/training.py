"""The part of `rsseg fit` and `rsseg adapt` that is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsseg_cli.cli.command import print_json
from rsseg_cli.commands.options import TrainingOptions

if TYPE_CHECKING:
    from rsseg_cli.commands.fit.fit import Fit, FitReport
    from rsseg_cli.config import RunConfig
    from rsseg_cli.training.deadline import Deadline


def train(
    kind: type[Fit], config: RunConfig, options: TrainingOptions, deadline: Deadline
) -> FitReport | None:
    """Run a training, or print its plan on `--dry-run`.

    Returns:
        The result on rank 0; None on other ranks and after a dry run.
    """
    from rsseg_cli import distributed

    with distributed.group(options.device):
        job = kind(
            config,
            data_root=options.data_root,
            folder=options.output,
            device=options.device,
            resume=options.resume,
            overwrite=options.overwrite,
            deadline=deadline,
            quiet=options.quiet or options.as_json,
        )
        if options.dry_run:
            plan = job.plan()
            if distributed.is_main():
                print_json(plan.to_json()) if options.as_json else plan.show()
            return None
        result = job.run()
        return result if distributed.is_main() else None

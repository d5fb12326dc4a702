"""Options of `rsseg fit`."""

from __future__ import annotations

from dataclasses import dataclass

from rsseg_cli.commands.options import (
    ADVANCED,
    ClassMapOption,
    ExperimentOption,
    PrecisionOption,
    TrainingOptions,
    option,
    require_alone,
)


@dataclass(frozen=True, kw_only=True)
class FitOptions(TrainingOptions, ClassMapOption, ExperimentOption, PrecisionOption):
    """Options of `rsseg fit`.

    Raises:
        RssegError: An option was given that `--experiment` sets itself.
    """

    compile: bool = option(
        False, "Compile the model before training.", ADVANCED, setting="training.compile"
    )

    def __post_init__(self) -> None:
        if self.experiment is not None:
            require_alone(
                {
                    "--method": self.method,
                    "--src": self.src,
                    "--config": self.config,
                    "--class-map": self.class_map,
                }
            )

"""Resolves the settings of `rsseg adapt`: of a model, a preset or a file."""

from __future__ import annotations

import json
from typing import Any

from rsseg_cli import config as configs
from rsseg_cli.commands.adapt.options import AdaptOptions
from rsseg_cli.commands.model import model_file
from rsseg_cli.config import RunConfig, changed_keys
from rsseg_cli.errors import RssegError
from rsseg_cli.presets import Document
from rsseg_cli.training.checkpoint import load_model

VALIDATIONS = 10
"""Number of validations of a run that starts from a fitted model."""
SOURCE_FREE_RATE = 0.03
"""Factor of the fit's learning rates without a source: such a run has no labels against drift."""
PATIENCE = 4
"""Validations without a better model after which a run without a source stops."""


def resolve(options: AdaptOptions) -> RunConfig:
    """Resolve the settings of a model, a preset or a file with the changes of the command line.

    A run that starts from a fitted model has other defaults than a fit: a quarter of its steps,
    and low learning rates where there is no source. They apply where the command line sets nothing.

    Raises:
        RssegError: More than one start is named, or an option cannot be combined with the start.
    """
    if sum(start is not None for start in (options.model, options.method, options.config)) > 1:
        raise RssegError(
            "a run starts from one of --model, --method and --config", fix="leave out the others"
        )
    changes = options.changes()
    if options.tgt:
        changes = [f"adapt.tgt={json.dumps(options.tgt)}", *changes]
    if options.method is not None or options.config is not None:
        return configs.resolve(
            method=options.method,
            file=options.config,
            sources=options.src,
            backbone=options.backbone,
            head=options.head,
            pretrained=not options.no_pretrained,
            changes=changes,
        )
    if options.backbone is not None or options.head is not None or options.no_pretrained:
        raise RssegError(
            "the backbone and the head of a fitted model cannot be replaced",
            where="--backbone, --head, --no-pretrained",
            fix="--method NAME --src DATA starts from the pretrained backbone",
        )
    path = model_file(options.model)
    fitted = configs.parse(Document(path, load_model(path)[1]["config"]))
    user = configs.revise(fitted, path, sources=options.src, changes=changes)
    defaults = _defaults(fitted, user, steps_are_set="training.steps" in changed_keys(changes))
    defaults["adapt.model"] = str(options.model or path)
    unset = defaults.keys() - changed_keys(changes)
    filled = [f"{key}={json.dumps(defaults[key])}" for key in sorted(unset)]
    return configs.revise(fitted, path, sources=options.src, changes=[*filled, *changes])


def _defaults(fitted: RunConfig, user: RunConfig, *, steps_are_set: bool) -> dict[str, Any]:
    """Return the defaults of a run that starts from a fitted model.

    `user` are its settings with the changes of the command line, which may set the steps.
    """
    training, optimizer = fitted.training, fitted.optimizer
    steps = user.training.steps if steps_are_set else max(1, training.steps // 4)
    every = steps // VALIDATIONS
    defaults: dict[str, Any] = {
        "adapt.warmup_fraction": 0,
        "training.steps": steps,
        "training.validate_every": max(1, min(training.validate_every, every)),
        "training.log_every": max(1, min(training.log_every, every)),
        "optimizer.warmup": min(optimizer.warmup, every),
    }
    # The rates of a model that was adapted without a source are already low.
    if user.adapt.source_free and not fitted.adapt.source_free:
        defaults["adapt.patience"] = PATIENCE
        defaults["optimizer.lr"] = optimizer.lr * SOURCE_FREE_RATE
        if optimizer.backbone_lr is not None:
            defaults["optimizer.backbone_lr"] = optimizer.backbone_lr * SOURCE_FREE_RATE
    return defaults

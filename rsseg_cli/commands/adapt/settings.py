"""Resolves the configuration of `rsseg adapt`: from a model, a preset or a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsseg_cli import config as configs
from rsseg_cli.commands.model import model_file
from rsseg_cli.config import RunConfig, changed_keys
from rsseg_cli.errors import RssegError
from rsseg_cli.presets import Document
from rsseg_cli.training.checkpoint import load_model

VALIDATIONS = 10
"""Number of validations of a run that starts from a fitted model."""
SOURCE_FREE_RATE = 0.03
"""Factor of the fit's learning rates without a source: no labels keep such a run from drifting."""
PATIENCE = 4
"""Validations without a better model after which a run without a source stops."""


def resolve(
    *,
    model: Path | None = None,
    method: str | None = None,
    file: Path | None = None,
    sources: Sequence[str] = (),
    targets: Sequence[str] = (),
    backbone: str | None = None,
    head: str | None = None,
    pretrained: bool = True,
    changes: Sequence[str] = (),
) -> RunConfig:
    """Resolve the settings of a model, a preset or a file with the changes of the command line.

    A run that starts from a fitted model has other defaults than a fit: a quarter of its steps,
    and low learning rates where there is no source. They fill what the command line leaves unset.

    Args:
        model: Run folder or model file to start from; the newest run when all three are None.
        method: Name of a method preset, to start from the pretrained backbone.
        file: The `config.yaml` of an earlier adaptation.
        sources: Datasets; they replace those of the model or file.
        targets: Scenes and datasets; likewise.
        backbone: Another backbone, with `method`.
        head: Another head, with `method`.
        pretrained: False initialises the backbone at random.
        changes: `section.key=value`; the last of two with the same key wins.

    Raises:
        RssegError: More than one start is named, or an option does not go with the start.
    """
    if sum(start is not None for start in (model, method, file)) > 1:
        raise RssegError(
            "a run starts from one of --model, --method and --config", fix="leave out the others"
        )
    if targets:
        changes = [f"adapt.tgt={json.dumps(list(targets))}", *changes]
    if method is not None or file is not None:
        return configs.resolve(
            method=method,
            file=file,
            sources=sources,
            backbone=backbone,
            head=head,
            pretrained=pretrained,
            changes=changes,
        )
    if backbone is not None or head is not None or not pretrained:
        raise RssegError(
            "a fitted model has its backbone and head",
            where="--backbone, --head, --no-pretrained",
            fix="--method NAME --src DATA starts anew",
        )
    path = model_file(model)
    fitted = configs.parse(Document(path, load_model(path)[1]["config"]))
    user = configs.revise(fitted, path, sources=sources, changes=changes)
    defaults = _defaults(fitted, user, steps_are_set="training.steps" in changed_keys(changes))
    defaults["adapt.model"] = str(path if model is None else model)
    unset = defaults.keys() - changed_keys(changes)
    filled = [f"{key}={json.dumps(defaults[key])}" for key in sorted(unset)]
    return configs.revise(fitted, path, sources=sources, changes=[*filled, *changes])


def _defaults(fitted: RunConfig, user: RunConfig, *, steps_are_set: bool) -> dict[str, Any]:
    """Return the defaults of a run that starts from a fitted model.

    Args:
        fitted: Settings of the model.
        user: The same with the changes of the command line.
        steps_are_set: Whether the command line sets the number of steps.
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
    # The rates of a model that was itself adapted without a source are low already.
    if user.adapt.source_free and not fitted.adapt.source_free:
        defaults["adapt.patience"] = PATIENCE
        defaults["optimizer.lr"] = optimizer.lr * SOURCE_FREE_RATE
        if optimizer.backbone_lr is not None:
            defaults["optimizer.backbone_lr"] = optimizer.backbone_lr * SOURCE_FREE_RATE
    return defaults

"""Settles the settings of an adaptation: from a model's own, a preset or a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rsseg_cli import config as configs
from rsseg_cli.config import RunConfig
from rsseg_cli.errors import RssegError
from rsseg_cli.presets import Document
from rsseg_cli.run.model import newest
from rsseg_cli.training.checkpoint import load_model

VALIDATIONS = 10
"""How often a model that starts as fitted is validated."""
SOURCE_FREE_RATE = 0.03
"""Learning rates without a source, as a part of the fit's: nothing holds such a run back."""
PATIENCE = 4
"""Validations without a better model that a run without source waits for."""


def resolve(
    *,
    model: Path | None,
    method: str | None,
    file: Path | None,
    sources: Sequence[str],
    targets: Sequence[str],
    backbone: str | None,
    head: str | None,
    pretrained: bool,
    changes: Sequence[str],
    more: Sequence[str],
) -> RunConfig:
    """Take the settings of a model, a preset or a file, and apply what the command line changes.

    Args:
        model: Run folder or model file to start from; the newest run when nothing else is given.
        method: Name of a method preset, to start from the backbone as published.
        file: The `config.yaml` of an earlier adaptation.
        sources: Datasets; they replace those of the model or file.
        targets: Scenes and datasets; likewise.
        backbone: Another backbone, with `method`.
        head: Another head, with `method`.
        pretrained: False starts the backbone at random.
        changes: `section.key=value` from options.
        more: `section.key=value` from `--set`; they win.

    Raises:
        RssegError: More than one start is named, or an option fits another start.
    """
    given = [model is not None, method is not None, file is not None]
    if sum(given) > 1:
        raise RssegError(
            "a run starts from one of --model, --method and --config", fix="leave out the others"
        )
    asked = [f"adapt.tgt={json.dumps(list(targets))}"] if targets else []
    if method is not None or file is not None:
        return configs.resolve(
            method=method,
            file=file,
            sources=sources,
            backbone=backbone,
            head=head,
            pretrained=pretrained,
            changes=[*asked, *changes, *more],
        )
    if backbone is not None or head is not None or not pretrained:
        raise RssegError(
            "a fitted model has its backbone and head",
            where="--backbone, --head, --no-pretrained",
            fix="--method NAME --src DATA starts anew",
        )
    path = newest() if model is None else model
    file = path / "model.safetensors" if path.is_dir() else path
    fitted = configs.parse(Document(file, load_model(file)[1]["config"]))
    return configs.revise(
        fitted,
        path,
        sources=sources,
        changes=[*_from_fit(fitted, path, changes), *asked, *changes, *more],
    )


def _from_fit(fitted: RunConfig, path: Path, changes: Sequence[str]) -> list[str]:
    """Set what differs when a run starts from a fitted model: short, no warm-up, gentle."""
    chosen = next((c for c in changes if c.startswith("training.steps=")), "")
    steps = int(chosen.partition("=")[2] or max(1, fitted.training.steps // 4))
    training = fitted.training
    found = [
        f"adapt.model={json.dumps(str(path))}",
        "adapt.warmup_fraction=0",
        f"training.steps={steps}",
        f"training.validate_every={max(1, min(training.validate_every, steps // VALIDATIONS))}",
        f"training.log_every={max(1, min(training.log_every, steps // VALIDATIONS))}",
        f"optimizer.warmup={min(fitted.optimizer.warmup, steps // VALIDATIONS)}",
    ]
    if "adapt.source_free=True" in changes:
        optimizer = fitted.optimizer
        found.append(f"adapt.patience={PATIENCE}")
        found.append(f"optimizer.lr={optimizer.lr * SOURCE_FREE_RATE}")
        if optimizer.backbone_lr is not None:
            found.append(f"optimizer.backbone_lr={optimizer.backbone_lr * SOURCE_FREE_RATE}")
    return found

"""Checks before training whether a run folder can be created, replaced or resumed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rsseg_cli import distributed, presets
from rsseg_cli.commands.model import RUNS
from rsseg_cli.commands.options import TrainingOptions
from rsseg_cli.config import SECTIONS, RunConfig, parse
from rsseg_cli.data.resolve_source import parse_source
from rsseg_cli.errors import Interrupted, OutputExistsError, RssegError
from rsseg_cli.training.checkpoint import load_resume
from rsseg_cli.training.deadline import Deadline
from rsseg_cli.training.run_folder import RunFolder

MAY_CHANGE = frozenset(
    [
        "adapt.model",  # the state holds the current weights
        "backbone.weights",  # fingerprints are compared
        "training.compile",
        "training.activation_checkpointing",
        "training.grad_accumulation",
        "training.log_every",
        "training.save_every",
        "training.num_workers",
    ]
)
"""Settings that a resumed run may change because they do not change its model; grad_accumulation
changes only batch statistics, to save memory. All others must be the same."""
SOURCES = frozenset(["data.src", "adapt.tgt"])
"""Settings whose files may have moved. Only `:split:domain` and the fingerprints of the files must
be the same."""


def since_first_attempt(deadline: Deadline) -> Deadline:
    """Subtract from a deadline the time of attempts before a restart by `torchrun`.

    Raises:
        Interrupted: An earlier attempt has stopped because its time was up.
    """
    if distributed.value_before_restart("time is up") is not None:
        raise Interrupted(
            "the time of --max-time is up, the run is not restarted",
            where="--max-time",
            fix="the same command with --resume",
        )
    deadline.subtract(distributed.seconds_before_restart())
    return deadline


def open_run_folder(
    options: TrainingOptions, config: RunConfig, name: str
) -> tuple[Path, dict[str, Any] | None]:
    """Return the folder of a run, `runs/name` by default, and the state to resume from, if any.

    After a restart by `torchrun`, the run of the earlier attempt is resumed; it begins again if it
    had not saved a state yet.

    Raises:
        RssegError: There is nothing to resume, the settings differ, or the folder is in use or
            cannot be created.
    """
    path = options.output or RUNS / name
    run, is_restart = RunFolder(path), distributed.begun_before_restart(path)
    if options.resume or (is_restart and run.resume.exists()):
        return path, _read_state(run, config)
    if not is_restart or run.finished:
        _require_free(run, overwrite=options.overwrite and not is_restart)
    return path, None


def _require_free(run: RunFolder, *, overwrite: bool) -> None:
    """Raise an error unless the folder can be created, is empty, or holds a run to overwrite."""
    path = run.path
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise RssegError(
            f"{existing} {'cannot be written to' if existing.is_dir() else 'is not a folder'}",
            where=str(path),
            fix="another --output",
        )
    if existing != path.absolute() or all(file.suffix == ".part" for file in path.iterdir()):
        return
    if not run.config.is_file():
        raise OutputExistsError(
            f"{path} is not empty and not a run folder", where=str(path), fix="another --output"
        )
    if not overwrite:
        unfinished = run.resume.exists()
        raise OutputExistsError(
            f"{path} already exists" + (", unfinished" if unfinished else ""),
            where=str(path),
            fix="--resume to continue it, " * unfinished + "--overwrite, or another --output",
        )


def _read_state(run: RunFolder, config: RunConfig) -> dict[str, Any]:
    """Read the state of an interrupted run; raise an error if its settings differ."""
    state = load_resume(run.resume)
    changed = changed_settings(parse(presets.read(run.config)), config)
    if changed:
        raise RssegError(
            "the settings are not those of the interrupted run: " + "; ".join(changed),
            where=str(run.config),
            fix="the same options as before, or "
            f"--config {run.config} --resume --output {run.path}",
        )
    return state


def changed_settings(before: RunConfig, now: RunConfig) -> list[str]:
    """List the settings that differ, except those that a resumed run may change."""
    old, new = before.to_json(), now.to_json()
    return [
        f"{section}.{key} {new[section].get(key)} was {old[section].get(key)}"
        for section in SECTIONS
        for key in sorted(old[section].keys() | new[section].keys())
        if f"{section}.{key}" not in MAY_CHANGE
        and _comparable(f"{section}.{key}", old) != _comparable(f"{section}.{key}", new)
    ]


def _comparable(setting: str, document: dict[str, Any]) -> Any:
    """Return the value of a setting; of sources, only their splits and domains."""
    section, _, key = setting.partition(".")
    value = document[section].get(key)
    return [parse_source(text)[1:] for text in value] if setting in SOURCES else value


def require_same_data(state: dict[str, Any], about: dict[str, Any], path: Path) -> None:
    """Check that an interrupted run continues with the same data and backbone.

    Args:
        state: State of the interrupted run.
        about: Current metadata of the model files.
        path: The run folder.

    Raises:
        RssegError: Files were added, removed or changed, or classes, bands or the backbone's
            weights differ.
    """
    before, now = _inputs(state["about"]), _inputs(about)
    changed = [name for name in before if before[name] != now[name]]
    if changed:
        raise RssegError(
            f"the data have changed since the run was interrupted ({', '.join(changed)})",
            where=str(path),
            fix="restore the data, or start a new run with --overwrite",
        )


def _inputs(about: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata that must stay the same; the files may have moved."""
    sources = [{k: v for k, v in source.items() if k != "root"} for source in about["sources"]]
    return {
        "classes": about["classes"],
        "bands": about["bands"],
        "sources": sources,
        "backbone": about["fingerprint"],
    }

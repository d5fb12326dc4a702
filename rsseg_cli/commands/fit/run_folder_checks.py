"""Checks before training that a run folder can be created, replaced or resumed."""

from __future__ import annotations

from pathlib import Path
from rsseg_cli import distributed
from rsseg_cli import presets
from rsseg_cli.config import RunConfig
from rsseg_cli.config import SECTIONS
from rsseg_cli.config import parse
from rsseg_cli.data.resolve_source import parse_source
from rsseg_cli.errors import Interrupted
from rsseg_cli.errors import OutputExistsError
from rsseg_cli.errors import RssegError
from rsseg_cli.training.checkpoint import load_resume
from rsseg_cli.training.deadline import Deadline
from rsseg_cli.training.run_folder import RunFolder
from typing import Any
import os

MAY_CHANGE = frozenset(
    [
        "adapt.model",  # the state holds the weights that the run has by now
        "backbone.weights",  # fingerprints are compared
        "training.compile",
        "training.activation_checkpointing",
        "training.grad_accumulation",
        "training.log_every",
        "training.save_every",
        "training.num_workers",
    ]
)
"""Settings that a resumed run may change, because they do not change its model (or, like
grad_accumulation, only its batch statistics, to save memory). All others must be the same."""
SOURCES = frozenset(["data.src", "adapt.tgt"])
"""Settings whose files may have moved: only `:split:domain` must be the same, and the files'
fingerprints."""


def since_first_attempt(deadline: Deadline) -> Deadline:
    """Subtract the time of attempts before a restart by `torchrun` from a deadline.

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


def open_state(
    path: Path, config: RunConfig, *, resume: bool, overwrite: bool
) -> dict[str, Any] | None:
    """Read the state to resume from; None for a new run, after a check of its folder.

    What an attempt of this same command has begun before a restart by `torchrun` is resumed, or
    begun again where it had saved no state yet.

    Raises:
        RssegError: There is nothing to resume, the settings differ, or the folder is not free.
    """
    run, own = RunFolder(path), distributed.begun_before_restart(path)
    if resume or (own and run.resume.exists()):
        return read_state(path, config)
    if not own or run.finished:
        require_free(path, overwrite=overwrite and not own)
    return None


def require_free(path: Path, *, overwrite: bool) -> None:
    """Check that a run folder can be created.

    Raises:
        RssegError: The folder holds a run and `overwrite` is not set, or it holds something else,
            or it cannot be created.
    """
    above = path.absolute()
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise RssegError(
            f"{above} {'cannot be written to' if above.is_dir() else 'is not a folder'}",
            where=str(path),
            fix="another --output",
        )
    if above != path.absolute() or all(file.suffix == ".part" for file in path.iterdir()):
        return
    run = RunFolder(path)
    if not run.config.is_file():
        raise OutputExistsError(
            f"{path} holds other things than a run", where=str(path), fix="another --output"
        )
    if not overwrite:
        unfinished = run.resume.exists()
        raise OutputExistsError(
            f"{path} already exists" + (", unfinished" if unfinished else ""),
            where=str(path),
            fix="--resume to continue it, " * unfinished + "--overwrite, or another --output",
        )


def read_state(path: Path, config: RunConfig) -> dict[str, Any]:
    """Read the state of an interrupted run with the same settings.

    Raises:
        RssegError: There is nothing to resume, or the settings differ.
    """
    run = RunFolder(path)
    state = load_resume(run.resume)
    changed = changed_settings(parse(presets.read(run.config)), config)
    if changed:
        raise RssegError(
            "the settings are not those of the interrupted run: " + "; ".join(changed),
            where=str(run.config),
            fix=f"the same options as before, or --config {run.config} --resume --output {path}",
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
        about: Metadata of the model files now.
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
            fix="the data as they were, or a new run with --overwrite",
        )


def _inputs(about: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata that must stay the same; the position of the files may change."""
    sources = [{k: v for k, v in source.items() if k != "root"} for source in about["sources"]]
    return {
        "classes": about["classes"],
        "bands": about["bands"],
        "sources": sources,
        "backbone": about["fingerprint"],
    }

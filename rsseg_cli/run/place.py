"""Checks, before anything is computed, that a run's folder can be begun, replaced or resumed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rsseg_cli import distributed, presets
from rsseg_cli.config import SECTIONS, RunConfig, parse
from rsseg_cli.errors import Interrupted, OutputExistsError, RssegError
from rsseg_cli.training.checkpoint import load_resume
from rsseg_cli.training.deadline import Deadline
from rsseg_cli.training.folder import RunFolder

MAY_CHANGE = frozenset(
    [
        "backbone.weights",
        "data.src",
        "training.log_every",
        "training.save_every",
        "training.validate_every",
        "training.threads",
        "training.recompute",
        "training.compile",
    ]
)
"""Settings that a resumed run may change: they do not change what it learns. Files may have moved;
whether they are the same is told by their fingerprints."""


def since_first_attempt(deadline: Deadline) -> Deadline:
    """Count the time of the attempts before a restart by `torchrun`, too.

    Raises:
        Interrupted: An earlier attempt has stopped because its time was up.
    """
    if distributed.recall("time is up") is not None:
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
    """Refuse a folder that holds something else, or that cannot be written.

    Raises:
        RssegError: There is a run already and `overwrite` is not set, the folder holds no run at
            all, or it cannot be made.
    """
    above = path.absolute()
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise RssegError(
            f"{above} {'cannot be written to' if above.is_dir() else 'is no folder'}",
            where=str(path),
            fix="another --run",
        )
    if above != path.absolute() or all(one.suffix == ".part" for one in path.iterdir()):
        return
    run = RunFolder(path)
    if not run.config.is_file():
        raise OutputExistsError(
            f"{path} holds other things than a run", where=str(path), fix="another --run"
        )
    if not overwrite:
        unfinished = run.resume.exists()
        raise OutputExistsError(
            f"{path} is there already" + (", unfinished" if unfinished else ""),
            where=str(path),
            fix="--resume to go on, " * unfinished + "--overwrite, or another --run",
        )


def read_state(path: Path, config: RunConfig) -> dict[str, Any]:
    """Read the state of an interrupted run, if it was one with the same settings.

    Raises:
        RssegError: There is nothing to resume, or the settings differ.
    """
    run = RunFolder(path)
    state = load_resume(run.resume)
    before, now = parse(presets.read(run.config)).document(), config.document()
    changed = [
        f"{section}.{key} {now[section].get(key)} was {before[section].get(key)}"
        for section in SECTIONS
        for key in sorted(before[section].keys() | now[section].keys())
        if before[section].get(key) != now[section].get(key)
        and f"{section}.{key}" not in MAY_CHANGE
    ]
    if changed:
        raise RssegError(
            "the settings are not those of the interrupted run: " + "; ".join(changed),
            where=str(run.config),
            fix=f"the same options as before, or --config {run.config} --resume --run {path}",
        )
    return state


def require_same_data(state: dict[str, Any], about: dict[str, Any], path: Path) -> None:
    """Refuse to go on with other data than an interrupted run has seen.

    Raises:
        RssegError: Files were added, removed or changed, or classes or bands are others.
    """
    changed = [
        part
        for part, before in _what_was_seen(state["about"]).items()
        if before != _what_was_seen(about)[part]
    ]
    if changed:
        raise RssegError(
            f"the data have changed since the run was interrupted ({', '.join(changed)})",
            where=str(path),
            fix="the data as they were, or a new run with --overwrite",
        )


def _what_was_seen(about: dict[str, Any]) -> dict[str, Any]:
    """Pick what must stay; where the files lie does not matter."""
    sources = [{k: v for k, v in one.items() if k != "root"} for one in about["sources"]]
    return {"classes": about["classes"], "bands": about["bands"], "sources": sources}

"""Checks, before anything is computed, that a run's folder can be begun, replaced or resumed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rsseg_cli import presets
from rsseg_cli.config import SECTIONS, RunConfig, parse
from rsseg_cli.errors import OutputExistsError, RssegError
from rsseg_cli.training.checkpoint import load_resume
from rsseg_cli.training.run_folder import RunFolder

MAY_CHANGE = frozenset(
    [
        "backbone.weights",
        "data.src",
        "training.log_every",
        "training.save_every",
        "training.validate_every",
        "training.grad_accumulation",
        "training.num_workers",
        "training.activation_checkpointing",
        "training.compile",
    ]
)
"""Settings that a resumed run may change: they do not change what it learns, or, as
grad_accumulation, only how batch statistics are taken, where memory ran out. Files may have moved;
whether they are the same is told by their fingerprints."""


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
            fix="another --output",
        )
    if above != path.absolute() or all(one.suffix == ".part" for one in path.iterdir()):
        return
    run = RunFolder(path)
    if not run.config.is_file():
        raise OutputExistsError(
            f"{path} holds other things than a run", where=str(path), fix="another --output"
        )
    if not overwrite:
        unfinished = run.resume.exists()
        raise OutputExistsError(
            f"{path} is there already" + (", unfinished" if unfinished else ""),
            where=str(path),
            fix="--resume to go on, " * unfinished + "--overwrite, or another --output",
        )


def read_state(path: Path, config: RunConfig) -> dict[str, Any]:
    """Read the state of an interrupted run, if it was one with the same settings.

    Raises:
        RssegError: There is nothing to resume, or the settings differ.
    """
    run = RunFolder(path)
    state = load_resume(run.resume)
    before, now = parse(presets.read(run.config)).to_json(), config.to_json()
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
            fix=f"the same options as before, or --config {run.config} --resume --output {path}",
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

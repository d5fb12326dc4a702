"""Errors and warnings for users, and exit codes."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from rsseg_cli.number_format import listed

DONE, FAILED, USAGE, PARTIAL, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes: 1 `RssegError`, 2 wrong usage, 3 some of several scenes failed, 130 resumable."""


class RssegError(Exception):
    """An error that the user can fix.

    Args:
        what: The problem, in one sentence.
        where: The file, setting or command with the problem.
        fix: A possible solution.
    """

    exit_code = FAILED
    on_all_ranks = False
    """Whether all processes of a group raise it, so that only rank 0 should print it."""

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        """Return up to three lines for the terminal."""
        lines = [f"error: {self.what}"]
        if self.where:
            lines.append(f"   in: {self.where}")
        if self.fix:
            lines.append(f"  try: {self.fix}")
        return "\n".join(lines)


class OutputExistsError(RssegError):
    """The output file exists and `--overwrite` was not given."""


class UnreadableError(RssegError):
    """A file is missing, truncated or of another format than expected."""


class Interrupted(RssegError):
    """A signal stopped the run, which can be resumed."""

    exit_code = INTERRUPTED
    on_all_ranks = True


class PartialFailure(RssegError):
    """Some of several scenes failed; the maps of the others were written."""

    exit_code = PARTIAL


class RssegWarning(UserWarning):
    """A result may differ from what the user expects."""


def unknown(kind: str, name: str, choices: Iterable[str], *, where: str = "") -> RssegError:
    """Build the error for a name that is not among `choices`; similar names come first."""
    choices = sorted(choices)
    similar = get_close_matches(name, choices, n=3, cutoff=0.5)
    others = listed([choice for choice in choices if choice not in similar], 20)
    if similar:
        fix = " or ".join(similar) + (f" (also: {others})" if others else "")
    else:
        fix = others or f"there is no {kind} to choose from"
    return RssegError(f"{name} is not a known {kind}", where=where, fix=fix)

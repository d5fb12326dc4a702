"""Frozen baseline: only the head trains."""

from __future__ import annotations

from rsseg_cli.contract import Method, State


class Frozen(Method[State]):
    """Trains nothing in the backbone."""

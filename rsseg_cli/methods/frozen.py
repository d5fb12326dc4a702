"""The baseline of all methods: the backbone stays as it is, only the head trains."""

from __future__ import annotations

from rsseg_cli.contract import Method, State


class Frozen(Method[State]):
    """Changes nothing."""

"""Checks of a dataset on disk against its spec."""

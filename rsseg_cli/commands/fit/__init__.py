"""The `fit` command."""

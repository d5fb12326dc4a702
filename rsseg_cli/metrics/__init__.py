"""Scores of predictions against a reference."""

"""Scores from predictions and truth."""

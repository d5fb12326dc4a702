"""Synthetic sample data, and a run on it from training to scores."""

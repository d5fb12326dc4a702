"""Synthetic sample data, and all steps from training to scores on it."""

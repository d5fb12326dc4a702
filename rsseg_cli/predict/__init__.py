"""Inference: maps a scene with a model."""

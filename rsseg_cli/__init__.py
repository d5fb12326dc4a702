"""Semantic segmentation of satellite and aerial imagery with frozen foundation models."""

__version__ = "0.1.0"

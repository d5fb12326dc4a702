"""Spatial splits: blocks of pixels held out for validation."""

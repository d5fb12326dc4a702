"""Tiles: random streams for training, fixed grids for validation, and augmentation."""

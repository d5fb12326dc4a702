"""Datasets: files, bands, classes and splits, and tiles of them."""

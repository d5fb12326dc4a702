"""Datasets: which files, which bands, which classes, and the tiles cut from them."""

"""Inference of a spec for a folder without `dataset.yaml`."""

"""Modules of WEFT."""

"""Segmentation heads: class scores from feature maps, and their losses."""

"""Layers that methods and heads share."""

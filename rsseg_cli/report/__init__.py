"""Scores as tables, files and pages."""

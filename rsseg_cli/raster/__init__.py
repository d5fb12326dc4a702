"""Scenes in, maps out: everything that touches a georeferenced file."""

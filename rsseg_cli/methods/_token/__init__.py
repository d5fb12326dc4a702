"""Learned tokens that the features attend to."""

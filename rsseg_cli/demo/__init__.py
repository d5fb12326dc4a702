"""A sample made on the spot and the whole job run on it."""

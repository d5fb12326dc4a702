"""Selection of weights or modules by Fisher information."""

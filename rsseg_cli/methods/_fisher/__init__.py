"""Parts of the methods that select weights or modules by Fisher information."""

"""The loop, the objectives and what keeps a run safe."""

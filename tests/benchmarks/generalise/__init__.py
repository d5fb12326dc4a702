"""The parts of `bench_generalise.py`: pairs of domains, methods, runs and the table."""

"""The command of the benchmarks."""

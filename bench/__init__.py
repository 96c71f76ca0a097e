"""Benchmarks: pytest-benchmark suites, comparisons with other people's programs, and their results."""

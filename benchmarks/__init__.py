"""Benchmarks: what the app and the library cost beside their peers, measured in turns. ``python -m benchmarks``."""

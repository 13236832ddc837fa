"""Measurements of Thalweg, side by side with others and with the machine's limits: `python -m benchmarks --help`."""

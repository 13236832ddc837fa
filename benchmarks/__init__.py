"""Measurements of Thalweg, side by side with others and with the machine's limits: `python -m benchmarks --help`."""

from contextlib import suppress

# Peers run in an environment of their own, without Thalweg.
with suppress(ModuleNotFoundError):
    from thalweg.contract.process import prepare

    prepare()

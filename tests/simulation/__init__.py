"""Jobs on imaginary clusters: the server's own coordinator, driver, arrays and checkpoints; all around them is drawn from a seed.

Workers, network, disk and clock are imaginary, so that a run takes milliseconds, meets more faults than a real cluster does in a
year, and can be repeated by its seed: `python -m tests.simulation --help`.
"""

"""Peers that take up a server's connections, streams, memory and time: jobs go on meanwhile, and others are let in.

`python -m tests.siege` measures what they cost.
"""

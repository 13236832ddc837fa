"""Garbage for every method of every service: the server lives, answers, logs no traceback, and the jobs that run end as ever.

`python -m tests.fuzz --help` sends as much as one likes.
"""

"""Carries decisions out: the jobs of a server, each with its driver."""

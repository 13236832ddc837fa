"""Shards: processes that hold ranges of a job's parameters, and how the server reaches them."""

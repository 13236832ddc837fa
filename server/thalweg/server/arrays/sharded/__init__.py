"""The arrays of a job that shares them with shards: who is there, what is sent to them, in which order their chunks count."""

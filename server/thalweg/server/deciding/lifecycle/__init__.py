"""The life of a job on a server: events in, decisions out."""

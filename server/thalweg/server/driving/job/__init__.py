"""The driver of one running job, and what it holds."""

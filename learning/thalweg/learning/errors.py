"""Errors that keep a job from being trained, by where their cause is."""


class MistakeError(ValueError):
    """A mistake in the job, which no worker can escape. The message begins with the field of the job that it is about."""


class NodeError(Exception):
    """Something that this node lacks and another one may have. The message says what."""

"""What keeps a job from being trained, and whose fault that is."""


class MistakeError(ValueError):
    """A mistake in the job, which no worker can escape. The message begins with the field of the job that it is about."""


class NodeError(Exception):
    """Something that this node lacks, and that another one may have. The message says what."""

"""What is wrong with data."""


class DataError(ValueError):
    """Data that cannot be learnt from. The message begins with the field of the job that it is about."""

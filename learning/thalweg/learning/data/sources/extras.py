"""Packages that some sources need, and that not every node has."""

from thalweg.learning.errors import NodeError


def require_pyarrow(field: str) -> None:
    """Raises NodeError, whose message begins with `field`, if pyarrow is not installed."""
    try:
        import pyarrow  # noqa: F401, PLC0415 - an extra
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        raise NodeError(f"{field}: pyarrow is not installed on this machine; pip install 'thalweg[data]'") from error

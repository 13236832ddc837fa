"""Packages that some sources need, and that not every node has."""

from thalweg.learning.errors import NodeError


def require_pyarrow(field: str) -> None:
    """Raises NodeError, whose message begins with `field`, if pyarrow is not installed."""
    try:
        import pyarrow  # noqa: F401, PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise _missing(field, "pyarrow", error) from error


def require_pillow(field: str) -> None:
    """Raises NodeError, whose message begins with `field`, if Pillow is not installed."""
    try:
        import PIL  # noqa: F401, PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise _missing(field, "Pillow", error) from error


def _missing(field: str, package: str, error: ModuleNotFoundError) -> Exception:
    if error.name not in ("pyarrow", "PIL"):
        return error
    return NodeError(f"{field}: {package} is not installed on this machine; pip install 'thalweg[data]'")

"""Extras: packages beyond the base install that a command or a function needs."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from thalweg.client.errors import LocalError


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Raises ThalwegError, which says which extra to install, if an import within the context fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("thalweg"):
            raise
        raise LocalError(f"{what} not installed ({error.name} is missing): pip install 'thalweg[{extra}]'") from error


def require_ray() -> None:
    """Raises ThalwegError if Ray is not installed."""
    if find_spec("ray") is None:
        raise LocalError("Ray is not installed: pip install 'thalweg[workers]'")

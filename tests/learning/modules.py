"""Modules that entry points of tests name."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def importable(name: str) -> Iterator[ModuleType]:
    """A new module, which can be imported within the context."""
    module = sys.modules[name] = ModuleType(name)
    try:
        yield module
    finally:
        del sys.modules[name]

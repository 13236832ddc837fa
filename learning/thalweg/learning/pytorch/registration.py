"""Parameters that code makes while it is called with samples: a job knows, and trains, those only that the module had before."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from thalweg.learning import entry_points
from thalweg.learning.errors import MistakeError


class _Calls(threading.local):
    """The path of the job's field whose code a thread calls, empty for none."""

    field = ""


_calls = _Calls()


@contextmanager
def registering_nothing(field: str) -> Iterator[None]:
    """A context in which this thread raises MistakeError, with the author's line, where a module gets a parameter."""
    _watch()
    outer, _calls.field = _calls.field, field
    try:
        yield
    finally:
        _calls.field = outer


@cache
def _watch() -> None:
    # PyTorch's hooks are the process's: it is there for good, and looks at what its thread does.
    register_module_parameter_registration_hook(_refuse)


def _refuse(owner: nn.Module, name: str, _: Any) -> None:
    if not _calls.field:
        return
    place = entry_points.caller(threading.get_ident())
    raise MistakeError(
        f"{_calls.field}: the code makes the parameter {name} of a {type(owner).__name__} when it is called with samples"
        f"{place.where if place else ''}; it would not be trained: make it in __init__"
    )

"""What a model returns for samples: one array, or several of them in dictionaries, tuples, data classes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from numpy.typing import NDArray

from thalweg.learning.data.errors import listed
from thalweg.learning.errors import MistakeError
from thalweg.learning.objective import Outputs

T = TypeVar("T")


def leaves_of(found: object, name: str = "") -> Iterator[tuple[str, object]]:
    """What mappings, sequences and data classes hold, however nested, each with its name; None is left out.

    A name is made of keys, fields and positions, as `decoder.hidden` and `states.0`; that of an object which is no such thing is
    `name`.
    """
    match found:
        case None:
            return
        # Those of Hugging Face are data classes, too, and have fields without a value.
        case Mapping():
            parts = [(str(key), part) for key, part in found.items()]
        case tuple() if hasattr(found, "_fields"):
            parts = [(str(key), part) for key, part in zip(found._fields, found, strict=True)]
        case list() | tuple():
            parts = [(str(index), part) for index, part in enumerate(found)]
        case _ if is_dataclass(found) and not isinstance(found, type):
            parts = [(field.name, getattr(found, field.name)) for field in fields(found)]
        case _:
            yield name, found
            return
    for key, part in parts:
        yield from leaves_of(part, f"{name}.{key}" if name else key)


def named_outputs(found: object, kind: type[T], array: Callable[[T], NDArray[Any]], samples: int, subject: str) -> Outputs:
    """The outputs of a model that returned several: objects of a kind, of which `array` makes arrays.

    Outputs are those with the samples on the first axis. Raises MistakeError, which begins with `subject`, if there are none,
    or if two have one name.
    """
    named: dict[str, NDArray[Any]] = {}
    others: list[str] = []
    for name, leaf in leaves_of(found):
        if name in named or name in others:
            raise MistakeError(f"{subject} returned two outputs with the name {name!r}; rename one of them")
        values = array(leaf) if isinstance(leaf, kind) else None
        if values is None or values.shape[:1] != (samples,):
            others.append(name)
        else:
            named[name] = values
    if not named:
        has = f", which has {listed(others)}" if others and others[0] else ""
        raise MistakeError(
            f"{subject} returned {type(found).__name__}{has}, but no array with the {samples} samples on its first axis; "
            "return one, or several in a dictionary"
        )
    return Outputs(next(iter(named.values())), named=named, left_out=tuple(others))

"""What a module has beside parameters, buffers and modules: plain attributes, which training neither knows nor keeps."""

import random
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor, nn

# What modules have themselves.
_INTERNAL = frozenset(vars(nn.Module()))
# Larger arrays are not looked at, nor is what lies deeper, or comes later.
_MAX_BYTES = 16 << 20
_MAX_DEPTH = 5
_MAX_PARTS = 10_000


def attributes(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The plain attributes of a module and of those within it: their names, where they are, and the names there."""
    for prefix, owner in module.named_modules():
        if isinstance(owner, torch.jit.ScriptModule):
            continue
        for key in [key for key in vars(owner) if key not in _INTERNAL]:
            yield f"{prefix}.{key}" if prefix else key, owner, key


def parts_of_attributes(module: nn.Module, hooked: bool = True) -> Iterator[tuple[str, object]]:
    """Plain attributes, and what is in lists, tuples and dictionaries that are attributes, modules for their parameters.

    Without `hooked`, those of modules are left out that have hooks before calls, which may set them.
    """
    for name, owner, key in attributes(module):
        if hooked or not owner._forward_pre_hooks:
            yield from _parts(name, vars(owner)[key], _MAX_DEPTH)


def digests(module: nn.Module) -> dict[str, str]:
    """A digest of the value of each plain attribute, as far as its value is plain to see: of numbers, texts, arrays, tensors,
    random generators, and of what contains such."""
    return {name: digest(vars(owner)[key]) for name, owner, key in attributes(module)}


def _parts(name: str, value: object, depth: int) -> Iterator[tuple[str, object]]:
    match value:
        case nn.Module():
            yield from ((f"{name}.{each}", parameter) for each, parameter in value.named_parameters())
        case Mapping() if depth:
            for key, part in list(value.items())[:_MAX_PARTS]:
                yield from _parts(f"{name}[{key!r}]", part, depth - 1)
        case list() | tuple() if depth:
            for index, part in enumerate(value[:_MAX_PARTS]):
                yield from _parts(f"{name}[{index}]", part, depth - 1)
        case _:
            yield name, value


def digest(value: object) -> str:
    """A digest of a value, as far as it is plain to see."""
    found, seen = sha256(), set[int]()
    for word in _words(value, _MAX_DEPTH, seen):
        found.update(word)
        if len(seen) > _MAX_PARTS:
            break
    return found.hexdigest()


def _words(value: object, depth: int, seen: set[int]) -> Iterator[bytes]:
    """Bytes that change if a value does. What is of unknown kinds changes nothing."""
    match value:
        case None | bool() | int() | float() | complex() | str() | bytes() | Enum():
            yield f"{value!r},".encode(errors="replace")
            return
        case Tensor():
            yield from _of_tensor(value)
            return
        case np.ndarray() | np.generic():
            if value.nbytes <= _MAX_BYTES and not value.dtype.hasobject:
                yield f"{value.dtype}{value.shape}".encode() + value.tobytes()
            return
        case torch.Generator():
            yield value.get_state().numpy().tobytes()
            return
        case random.Random():
            yield repr(value.getstate()).encode()
            return
        case np.random.Generator():
            yield repr(value.bit_generator.state).encode()
            return
        case np.random.RandomState():
            yield repr(value.get_state()).encode()
            return
        case nn.Module() | type():
            return
    if not depth or id(value) in seen:
        return
    seen.add(id(value))
    for name, part in _inside(value):
        yield f"{name}:".encode(errors="replace")
        yield from _words(part, depth - 1, seen)


def _inside(value: object) -> list[tuple[str, object]]:
    """What is in an object, with names. The order of a set is none."""
    match value:
        case Mapping():
            return [(repr(key), part) for key, part in list(value.items())[:_MAX_PARTS]]
        case list() | tuple() | deque():
            return [(str(index), part) for index, part in enumerate(list(value)[:_MAX_PARTS])]
        case set() | frozenset():
            return [(each, None) for each in sorted(map(repr, value))[:_MAX_PARTS]]
        case _ if is_dataclass(value):
            return [(field.name, getattr(value, field.name, None)) for field in fields(value)]
        case _:
            return list(getattr(value, "__dict__", {}).items())


def _of_tensor(tensor: Tensor) -> Iterator[bytes]:
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.numel() * tensor.element_size() > _MAX_BYTES:
        return
    yield f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()

"""Two jobs side by side: in what their job files differ."""

import difflib
from collections.abc import Sequence
from typing import Any

from thalweg.client.jobfile import toml_of
from thalweg.client.mapping import values_of
from thalweg.v1 import job_pb2

# Longer files are shown line by line, not aligned: alignment takes time that grows with their product.
_MAX_LINES = 2000
_MAX_VALUE = 500


def compared(left: job_pb2.JobSpec, right: job_pb2.JobSpec) -> dict[str, Any]:
    """The fields that differ, with both values, and the lines of both job files, aligned."""
    return {"differences": differences(left, right), "lines": lines(toml_of(left), toml_of(right))}


def differences(left: job_pb2.JobSpec, right: job_pb2.JobSpec) -> list[dict[str, str | None]]:
    """The fields in which two specifications differ, by their paths. None stands for a field that one of them does not have."""
    ours, theirs = _flat(values_of(left)), _flat(values_of(right))
    return [
        {"field": path, "left": ours.get(path), "right": theirs.get(path)}
        for path in sorted(ours.keys() | theirs.keys())
        if ours.get(path) != theirs.get(path)
    ]


def lines(left: str, right: str) -> list[dict[str, Any]]:
    """The lines of two texts side by side; `differs` says where they differ, None stands for a line that one does not have."""
    ours, theirs = left.splitlines(), right.splitlines()
    blocks: Sequence[tuple[str, int, int, int, int]] = [("replace", 0, len(ours), 0, len(theirs))]
    if max(len(ours), len(theirs)) <= _MAX_LINES:
        blocks = difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()
    pairs = []
    for kind, start, end, other_start, other_end in blocks:
        for index in range(max(end - start, other_end - other_start)):
            a = ours[start + index] if start + index < end else None
            b = theirs[other_start + index] if other_start + index < other_end else None
            pairs.append({"left": a, "right": b, "differs": kind != "equal" and a != b})
    return pairs


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """The values of a tree by their paths, as in `model.layers[0].dense.units`."""
    match value:
        case dict() if value:
            return {k: v for name, item in value.items() for k, v in _flat(item, f"{path}.{name}" if path else name).items()}
        case list() if value:
            return {k: v for index, item in enumerate(value) for k, v in _flat(item, f"{path}[{index}]").items()}
        case bool():
            return {path: str(value).lower()}
        case dict():
            return {path: "{}"}
        case _:
            return {path: str(value)[:_MAX_VALUE]}

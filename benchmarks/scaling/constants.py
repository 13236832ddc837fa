"""What the model takes from measurements: the rows of the part `constants`, by name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CODECS = ("float32", "bfloat16", "float16", "int8", "top_k")


@dataclass(frozen=True)
class Constants:
    """Seconds of processor time, or, where a name ends in `byte`, seconds per byte.

    `server_step` is what a step costs the server however many workers there are; a message costs `server_message` at the server
    and `worker_message` at the worker, sent or received. Bytes are those that travel; those of `add`, `update`, `copy`, `fill`,
    `encode` and `decode` are those of the parameters in float32. `latency` is the time on the way between two processes of one
    machine, in which neither computes; `sleep` is what becomes of 20 ms. `gradient` is that of a microbatch, by workload; `size`
    what a codec makes of a byte of a gradient.
    """

    server_step: float
    server_message: float
    server_receive_byte: float
    server_send_byte: float
    worker_message: float
    worker_receive_byte: float
    worker_send_byte: float
    add_byte: float
    copy_byte: float
    fill_byte: float
    latency: float
    sleep: float
    update_byte: Mapping[str, float]
    gradient: Mapping[str, float]
    encode_byte: Mapping[str, float]
    decode_byte: Mapping[str, float]
    size: Mapping[str, float]


_SINGLE = [name for name, kind in Constants.__annotations__.items() if kind is float]
_MANY = [name for name in Constants.__annotations__ if name not in _SINGLE]


def constants(rows: Iterable[Sequence[Any]]) -> Constants:
    """Takes rows of a name, as `server_step` or `gradient.small`, a value, and what else there is. Raises ValueError."""
    found = {str(row[0]): float(row[1]) for row in rows}
    missing = [name for name in _SINGLE if name not in found]
    if missing:
        raise ValueError(f"constants that were not measured: {', '.join(missing)}")
    many = {name: {key.partition(".")[2]: value for key, value in found.items() if key.startswith(f"{name}.")} for name in _MANY}
    return Constants(**{name: found[name] for name in _SINGLE}, **many)  # type: ignore[arg-type]

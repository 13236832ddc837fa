"""Starts a Ray cluster on this machine, or joins an existing one."""

import logging
import os
import resource
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from thalweg.contract.endpoint import Address, Endpoint, parse_address
from thalweg.contract.resources import size_text
from thalweg.workers.ray.messages import Orders

# Nothing is kept in Ray's object store; this is the smallest size that Ray allows.
_OBJECT_STORE_BYTES = 80 << 20
_LARGEST_FILE_BYTES = _OBJECT_STORE_BYTES + (1 << 20)
_PROBE_SECONDS = 10.0
_LOOPBACK = "127.0.0.1"


class RayLostError(Exception):
    """The Ray cluster, or this machine's part in it, is gone."""


class RayOpenError(Exception):
    """The Ray cluster requires no token."""


def own_head() -> list[int]:
    """The processes of the Ray head that this process started, if it did.

    Ray itself notices when they die, but for a raylet only after 15 s.
    """
    with suppress(OSError):
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        names = {int(child): Path(f"/proc/{child}/comm").read_text().strip() for child in children}
        return [child for child, name in names.items() if name in ("gcs_server", "raylet")]
    return []


def _check_machine() -> None:
    """Raises RayLostError if Ray cannot start here. Ray itself would need a minute, and report no reason.

    It needs an address to listen on, and files of some size.
    """
    with socket.socket() as probe:
        try:
            probe.bind((_LOOPBACK, 0))
        except OSError as error:
            raise RayLostError(
                f"this machine has no {_LOOPBACK}, where it listens; add it: ip address add {_LOOPBACK}/8 dev lo"
            ) from error
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and limit < _LARGEST_FILE_BYTES:
        allowed, needed = size_text(limit), size_text(_LARGEST_FILE_BYTES)
        raise RayLostError(
            f"this process may write files of at most {allowed}, and Ray needs {needed}; raise the limit (ulimit -f)"
        )


def connect(ray: Any, orders: Orders) -> None:
    """Starts a Ray cluster or joins one. Raises RayLostError, RayOpenError, or what Ray raises."""
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "namespace": "thalweg"}
    if orders.ray_address:
        options["address"] = orders.ray_address
    else:
        _check_machine()
        # Ray finds the GPUs by itself.
        options |= {"address": "local", "num_cpus": orders.slots}
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    ray.init(**options)
    if not orders.trust_network and not _asks_for_a_token(parse_address(ray.get_runtime_context().gcs_address)):
        raise RayOpenError(
            "it requires no token, so anyone who can reach its ports can run code on it: start all of its nodes with "
            "RAY_AUTH_MODE=token and a token (docs/cluster.md), or use --trust-network"
        )


def _asks_for_a_token(address: Address) -> bool:
    """Whether a Ray cluster refuses a caller that has no token. `address` is its head's."""
    with Endpoint(address).open() as channel:
        ask: Any = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            ask(b"", timeout=_PROBE_SECONDS)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return True
            raise RayLostError(f"its head does not report whether it requires a token: {error.details()}") from error
    return False

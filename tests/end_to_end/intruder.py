"""Tries each way into a Ray cluster to run code there: `intruder.py HEAD HOST:PORT...`. Prints the result of each, as JSON.

The environment says with which token. What runs says so in its answer.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any

import grpc

# A method of each of the services that Ray's processes have, with which code, or work, can be handed in.
_METHODS = (
    "CoreWorkerService/PushTask",
    "JobInfoGcsService/AddJob",
    "NodeManagerService/RequestWorkerLease",
    "ObjectManagerService/Push",
    "RayletDriver/Init",
)
_SECONDS = 10.0
# Ray's client tries three times, and waits before each further try. By default that takes half a minute.
_PATIENCE = {"RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S": "3", "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "3"}


def _run_code(head: str) -> str:
    """Runs a function through Ray's server for clients."""
    os.environ.update(_PATIENCE)
    import ray

    try:
        ray.init(f"ray://{head}:10001", logging_level="ERROR")
        return str(ray.get(ray.remote(num_cpus=0)(lambda: "it ran").remote(), timeout=60))
    except Exception as error:  # noqa: BLE001 - whatever keeps it out
        return type(error).__name__
    finally:
        ray.shutdown()


def _call(address: str) -> list[str]:
    """The statuses of calls to a port, over gRPC and, where that is not spoken, HTTP."""
    statuses = set()
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        for method in _METHODS:
            call: Any = channel.unary_unary(f"/ray.rpc.{method}")
            try:
                call(b"", timeout=_SECONDS)
                statuses.add("OK")
            except grpc.RpcError as error:
                statuses.add(error.code().name)
    if statuses == {"UNAVAILABLE"}:
        try:
            with urllib.request.urlopen(f"http://{address}/", b"", timeout=_SECONDS) as answer:
                return [str(answer.status)]
        except urllib.error.HTTPError as error:
            return [str(error.code)]
        except urllib.error.URLError:
            # Ray ends workers that have nothing to do.
            return ["closed"]
    # Not all processes have all services.
    return sorted(statuses - {"UNIMPLEMENTED"})


if __name__ == "__main__":
    head, *ports = sys.argv[1:]
    found = {"code": _run_code(head), "ports": {port: _call(port) for port in ports}}
    sys.stdout.write(json.dumps(found) + "\n")

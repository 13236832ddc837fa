"""Looks for open TCP ports of hosts, and tries to do something with each: `scanner.py HOST...`. Prints the answers as JSON.

It has no token. What it tries is what a stranger would: calls of gRPC to each service that Thalweg's and Ray's processes have,
and the pages that Ray's agents serve over HTTP.
"""

import json
import socket
import ssl
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

_PORTS = range(1, 1 << 16)
# The latter is longer than a shard waits for word of a worker that calls it.
_CONNECT_SECONDS, _SECONDS = 5.0, 15.0
# Of each service one method that would tell or do something.
_METHODS = (
    "thalweg.v1.TrainingService/GetServerInfo",
    "thalweg.v1.TrainingService/ListJobs",
    "thalweg.v1.TrainingService/CreateJob",
    "thalweg.v1.FleetService/Attend",
    "thalweg.v1.ParameterService/Work",
    "thalweg.v1.ShardService/Hold",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "grpc.health.v1.Health/Watch",
    # Those of Ray's head.
    "ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "ray.rpc.JobInfoGcsService/AddJob",
    "ray.rpc.InternalKVGcsService/InternalKVGet",
    "ray.rpc.ActorInfoGcsService/CreateActor",
    # Those of its nodes, their agents and workers.
    "ray.rpc.NodeManagerService/RequestWorkerLease",
    "ray.rpc.NodeManagerService/ShutdownRaylet",
    "ray.rpc.ObjectManagerService/Push",
    "ray.rpc.CoreWorkerService/PushTask",
    "ray.rpc.RuntimeEnvService/CreateRuntimeEnv",
    "ray.rpc.ReporterService/GetTraceback",
    "ray.rpc.LogService/ListLogs",
    # That of its server for clients, which runs functions.
    "ray.rpc.RayletDriver/Init",
    "ray.rpc.RayletDriver/KVGet",
)
_PAGES = (
    *("GET /", "GET /metrics", "GET /api/version", "GET /api/jobs/", "GET /nodes?view=summary", "GET /api/local_raylet_healthz"),
    *("POST /api/job_agent/jobs/", "POST /get_or_create_runtime_env"),
)


def _open_ports(host: str) -> list[int]:
    """The ports of a host where something listens."""
    return [port for port in _PORTS if _listens(host, port)]


def _listens(host: str, port: int) -> bool:
    with socket.socket() as knocking:
        knocking.settimeout(_CONNECT_SECONDS)
        return knocking.connect_ex((host, port)) == 0


def _call(channel: grpc.Channel, method: str) -> str:
    """The status of a call with an empty message."""
    call: Any = channel.stream_stream(f"/{method}")
    try:
        for _ in call(iter([b""]), timeout=_SECONDS):
            pass
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code.name
    return "OK"


def _greeting(address: str) -> str:
    """The kind of connection that a port takes that takes none in clear text; empty if it takes such, or nothing can be said."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context()
    # Whatever it shows: who trusts a server verifies it, and a stranger does not care.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, int(port)), _SECONDS) as plain, context.wrap_socket(plain) as encrypted:
            encrypted.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
            return "it takes anyone" if encrypted.recv(9) else "the end"
    except ssl.SSLError as error:
        return error.reason or "refused"
    except OSError:
        return ""


def _page(address: str, page: str) -> str:
    """The status of a page; empty if HTTP is not spoken."""
    method, _, path = page.partition(" ")
    request = urllib.request.Request(f"http://{address}{path}", data=b"{}" if method == "POST" else None, method=method)
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        return str(error.code)
    except (OSError, ValueError):
        return ""
    except Exception as error:  # noqa: BLE001 - what is answered is no HTTP
        return "" if "BadStatusLine" in type(error).__name__ else type(error).__name__


def _tried(address: str) -> dict[str, str]:
    """What a port answers to each attempt, but for what it does not have."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        answers = {method: _call(channel, method) for method in _METHODS}
    answers |= {page: _page(address, page) for page in _PAGES}
    if not any(_says_something(answer) for answer in answers.values()):
        answers["TLS"] = _greeting(address)
    return {tried: answer for tried, answer in answers.items() if _says_something(answer)}


def _says_something(answer: str) -> bool:
    """Whether it is more than that there is no such thing."""
    return answer not in ("UNIMPLEMENTED", "UNAVAILABLE", "")


def _main(hosts: list[str]) -> None:
    with ThreadPoolExecutor(16) as pool:
        opened = zip(hosts, pool.map(_open_ports, hosts), strict=True)
        addresses = [f"{host}:{port}" for host, ports in opened for port in ports]
        found = dict(zip(addresses, pool.map(_tried, addresses), strict=True))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1:])

"""The environment in which a fleet drives Ray. Ray's own processes on this machine, and workers, inherit it."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

# Ray reads these when it is imported. The last: after how many seconds without the head a driver ends.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "3",
}
# A package that cannot be installed is tried again when the server says so: Ray itself would try three times at once, and then
# remember for ten minutes that it failed.
_INSTALLATIONS = {"RUNTIME_ENV_RETRY_TIMES": "1", "BAD_RUNTIME_ENV_CACHE_TTL_SECONDS": "1"}
# Without a token, Ray runs code for everyone who reaches its ports.
_AUTHENTICATION = {"RAY_AUTH_MODE": "token"}
# For the GNU C library's malloc in workers: memory that is freed is kept, up to 1 GiB, and lies in huge pages where the system
# has them. PyTorch allocates a module's gradients and activations anew in each step: to get the pages from the system again, each
# zeroed, takes up to a fifth of a step's processor time. With several arenas, large memory would not be kept.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# Ray's name for a setting that is not for clusters: everything listens on loopback only.
_LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
THALWEG_TOKEN = "THALWEG_TOKEN"  # noqa: S105 - a variable's name
_TOKEN = "RAY_AUTH_TOKEN"  # noqa: S105 - a variable's name
_TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"  # noqa: S105 - a variable's name


def for_own_ray(folder: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of the fleet's own Ray, which keeps its files in a folder.

    It has a new token, which is in no file, and listens on loopback only. Its workers keep the memory that they free, unless the
    environment has settings of malloc's own.
    """
    own = {_TOKEN: secrets.token_hex(32), "RAY_TMPDIR": str(folder)}
    malloc = {} if any(name in environment for name in MALLOC) else MALLOC
    return _INSTALLATIONS | _without(environment, _TOKEN_PATH, "RAY_ADDRESS") | own | _LOOPBACK_ONLY | malloc


def for_cluster(
    token_file: Path | None, *, trust_network: bool = False, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment for a Ray cluster. Its token is in a file, or where Ray looks: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray.

    With `trust_network` the cluster may require none; Ray needs some token nevertheless.
    """
    if token_file:
        return _without(environment, _TOKEN) | {_TOKEN_PATH: str(token_file.absolute())}
    if trust_network and not has_token(environment):
        return _without(environment) | {_TOKEN: secrets.token_hex(32)}
    return _without(environment)


def has_token(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether Ray finds a token for clusters."""
    if environment.get(_TOKEN) or environment.get(_TOKEN_PATH):
        return True
    try:
        return (Path.home() / ".ray" / "auth_token").exists()
    except (RuntimeError, OSError):
        return False


def _without(environment: Mapping[str, str], *names: str) -> dict[str, str]:
    """The environment without some variables, and with those that all drivers of Ray need."""
    # Parts of Ray need their docstrings to start. Workers, which inherit all this, must not get a token of the fleet's.
    kept = {name: value for name, value in environment.items() if name not in ("PYTHONOPTIMIZE", THALWEG_TOKEN, *names)}
    # The driver works in another folder than this process. An empty entry of PYTHONPATH would be the current folder.
    if path := kept.get(_TOKEN_PATH):
        kept[_TOKEN_PATH] = os.path.abspath(path)  # noqa: PTH100
    if entries := [os.path.abspath(entry) for entry in kept.pop("PYTHONPATH", "").split(os.pathsep) if entry]:  # noqa: PTH100
        kept["PYTHONPATH"] = os.pathsep.join(entries)
    return _SETTINGS | kept | _AUTHENTICATION

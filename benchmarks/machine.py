"""What the measurements were made on."""

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.peers import environment
from benchmarks.systems import variables

_OWN = ("numpy", "grpcio", "protobuf", "ray")
_PEERS = ("torch", "ray", "tensorflow-cpu")
_BLAS = "import json, numpy, threadpoolctl; print(json.dumps(threadpoolctl.threadpool_info()))"
_VERSIONS = """
import json, sys
from importlib import metadata
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def facts() -> dict[str, Any]:
    """Processor, cores, memory, versions."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "blas": [
            f"{pool['internal_api']} {pool['version']}, kernels {pool.get('architecture')}"
            for pool in _told(sys.executable, _BLAS)
        ],
        "versions": {name: metadata.version(name) for name in _OWN},
        "peers": _told(environment.python(), _VERSIONS, *_PEERS) if environment.python().exists() else {},
    }


def _told(python: str | Path, code: str, *arguments: str) -> Any:
    """The output of some code, run as the systems' programs are."""
    command = [str(python), "-c", code, *arguments]
    return json.loads(subprocess.run(command, env=variables(True), capture_output=True, text=True, check=True).stdout)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

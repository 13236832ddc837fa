"""Uploads that are larger than what client and server hold of them in memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.client.test_transfer import server_process

_MIB = 1 << 20
_SIZE = 256 * _MIB
# What a process may take besides: messages that are under way, and what gRPC and the memory allocator keep.
_BOUND = 64 * _MIB

# Uploads a small file or iterator, then a large one of the given size. Prints how much the process grew meanwhile.
_CLIENT = """
import json, sys
from pathlib import Path
import numpy as np
from thalweg.client import Client

def memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])

def batches(mebibytes):
    for _ in range(mebibytes):
        yield np.ones((1 << 10, 1 << 10), np.int8), np.zeros(1 << 10, np.int8)

with Client(sys.argv[1]) as client:
    before = 0
    for size, file in ((1, sys.argv[3]), (256, sys.argv[4])):
        before = memory("VmRSS")
        settings = {"data.npz": file} if sys.argv[2] == "file" else {}
        client.submit("xor", settings, data=batches(size) if sys.argv[2] == "batches" else None)
    print(json.dumps(memory("VmHWM") - before))
"""


def peak(process: int) -> int:
    """The most bytes that a process ever had in memory."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


@pytest.mark.parametrize("what", ["file", "batches"])
def test_an_upload_takes_no_memory_for_the_data(what: str, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.npz" for name in ("small", "large")}
    for path, size in zip(files.values(), (_MIB, _SIZE), strict=True):
        np.savez(path, x=np.zeros((1, size), np.int8), y=np.zeros(1, np.int8))
    with server_process(tmp_path / "server") as (server, port):
        before = psutil.Process(server.pid).memory_info().rss
        command = [sys.executable, "-c", _CLIENT, f"127.0.0.1:{port}", what, *map(str, files.values())]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        sizes = [path.stat().st_size for path in (tmp_path / "server" / "uploads").iterdir()]
        assert max(sizes) >= _SIZE
        assert json.loads(ended.stdout) < _BOUND
        assert peak(server.pid) - before < _BOUND

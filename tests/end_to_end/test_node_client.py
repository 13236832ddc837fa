"""A generated client in another language: Node.js, from the `.proto` files alone."""

import json
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from tests.end_to_end.cluster import running_server
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.workers.worker import work

NODE = Path(__file__).parents[1] / "node"
PROTO = Path(__file__).parents[2] / "proto"

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="needs Node.js and npm"),
]


@pytest.fixture(scope="module")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client with its two dependencies, installed by name."""
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "client.js"):
        shutil.copy(NODE / name, folder)
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"], cwd=folder, check=True, capture_output=True
    )
    return folder / "client.js"


def test_a_node_client_submits_watches_and_downloads(node_client: Path, tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        command = ["node", str(node_client), str(server.address), str(PROTO)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stderr
        created = process.stderr.readline().split()
        assert created[:1] == ["created"], created + process.stderr.readlines()
        worker = threading.Thread(target=work, args=(Endpoint(Address(*server.address)), created[1], "worker"))
        worker.start()
        stdout, stderr = process.communicate(timeout=120)
        worker.join()
    assert process.returncode == 0, stderr
    answer = json.loads(stdout)
    assert answer["state"] == "JOB_STATE_SUCCEEDED"
    assert answer["sequences"] == list(range(1, len(answer["sequences"]) + 1))
    assert answer["downloaded_sha256"] == answer["result"]["weights_sha256"]
    assert answer["tensors"] == {"2.weight": [10, 16], "2.bias": [10], "0.weight": [16, 64], "0.bias": [16]}
    assert answer["bytes"] == 4 * (10 * 16 + 10 + 16 * 64 + 16)
    assert answer["result"]["validation"]["accuracy"] > 0.8
    assert answer["refusal"]["code"] == 3
    assert answer["refusal"]["message"].startswith("model.loss: unknown value 'mse'; expected one of mean_squared_error, ")

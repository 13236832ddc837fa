"""A notebook trains a module that one of its cells defines, and reads the result back."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.helpers import fleet_of_threads
from tests.end_to_end.cluster import running_server

for package in ("IPython", "torch", "cloudpickle"):
    pytest.importorskip(package)

# Runs cells, given as a file of them, as a kernel does.
_KERNEL = """
import sys
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
for cell in Path(sys.argv[1]).read_text().split("# %%\\n")[1:]:
    shell.run_cell(cell).raise_error()
"""
_CELLS = """
# %%
import torch
from torch import nn
from thalweg.client import Client

client = Client("SERVER")
x = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
y = x @ torch.tensor([[1.0], [-2.0], [0.5]])
# %%
scale = 2.0
# %%
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return scale * self.linear(x)
# %%
net = Net()
assert Net.__module__ == "__main__"
settings = {"training": {"epochs": 60, "batch_size": 64}, "optimizer": {"sgd": {"learning_rate": 0.05}}}
job = client.submit(settings, model=net, loss=lambda outputs, targets: ((outputs - targets) ** 2).mean(1), data=(x, y))
job.wait(progress=False)
# %%
before = float(((net(x) - y) ** 2).mean())
net.load_state_dict(job.state_dict())
after = float(((net(x) - y) ** 2).mean())
assert after < 0.01 < before, (before, after)
# %%
print("trained:", [round(value, 1) for value in (scale * net.linear.weight).flatten().tolist()])
client.close()
"""


def test_a_module_of_a_cell_is_trained(tmp_path: Path) -> None:
    with (
        running_server(tmp_path / "server", allow_code=True) as server,
        fleet_of_threads(server, slots=1, allow_code=True),
    ):
        (tmp_path / "cells.py").write_text(_CELLS.replace("SERVER", str(server.address)))
        environment = {"HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path / "ipython"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", _KERNEL, str(tmp_path / "cells.py")]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "trained: [1.0, -2.0, 0.5]" in ran.stdout

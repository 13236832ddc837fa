"""What is trained to measure how fast: fully connected networks with ReLU, and PyTorch modules, by two synchronous workers.

Imports the standard library only, for it is read in the peers' environment as well.
"""

from dataclasses import dataclass
from itertools import pairwise

WORKERS = 2
# Samples that a job has: few enough to lie in memory wherever they are needed, enough that an epoch's end is rare.
SAMPLES = 20_480


@dataclass(frozen=True)
class Workload:
    """A model, a batch and an optimizer. `samples` are each worker's at each step, `widths` those of input, layers and output.

    Where `module` is given, the model is that function's PyTorch module (`modules.py`), called `what`, and has no widths.
    """

    name: str
    widths: tuple[int, ...]
    samples: int
    optimizer: str
    learning_rate: float
    module: str = ""
    what: str = ""

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum((inputs + 1) * outputs for inputs, outputs in pairwise(self.widths))

    @property
    def title(self) -> str:
        """The workload in words."""
        if self.module:
            return f"{self.what}, {self.samples} samples per worker, {self.optimizer.upper()}"
        widths = "-".join(map(str, self.widths))
        return f"{widths}, {self.parameters * 4 / 1e6:,.3g} MB, {self.samples} samples per worker, {self.optimizer.upper()}"


_ALL = (
    Workload("small", (784, 256, 128, 10), 128, "sgd", 0.01),
    Workload("wide", (784, 4096, 4096, 10), 128, "sgd", 0.01),
    Workload("tiny", (64, 32, 10), 32, "sgd", 0.01),
    Workload("wide_adam", (784, 4096, 4096, 10), 32, "adam", 1e-4),
)
_TORCH = (
    Workload("torch_convolutional", (), 32, "sgd", 0.01, "convolutional", "PyTorch: four convolutions with batch normalization"),
    Workload("torch_gpt", (), 4, "adam", 1e-4, "gpt", "PyTorch: a GPT of 10 million parameters, 128 bytes"),
    Workload("torch_wide", (), 128, "sgd", 0.01, "wide", "PyTorch: the layers of `wide`"),
)
# Those of layers, which any library has.
DENSE = {workload.name: workload for workload in _ALL}
WORKLOADS = DENSE | {workload.name: workload for workload in _TORCH}
# Names that stand for several workloads.
GROUPS = {"torch": [workload.name for workload in _TORCH]}

"""A step's time in closed form.

A gradient travels in pieces, one message each. A piece passes through stages: the worker writes it, the links carry it, the
server reads it and adds it, updates, and writes it for all workers, the links carry it back, the worker reads it. So a step is

    T = C + F + max_r (W_r - w_r)

where C is the time to compute, F that of one piece through all stages, W_r the work that a whole step has for resource r (a
worker, a link, a server), and w_r the part of one piece in it: the time to fill a pipeline, and that of its slowest stage.
With one worker and one piece nothing waits, and T = C + F. `simulator.py` lets the pieces queue instead.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

from benchmarks.scaling.constants import Constants
from thalweg.contract import codecs
from thalweg.contract.endpoint import CHUNK_BYTES


@dataclass(frozen=True)
class Network:
    """What lies between workers and servers. Seconds one way, and bytes per second, each way, of every machine's link.

    `cores` is the number of them that all processes share, where all are on one machine; None where each has its own.
    """

    name: str
    latency: float
    bandwidth: float
    cores: int | None = None


LAN = Network("10 Gbit/s", 50e-6, 10e9 / 8)
WAN = Network("100 Mbit/s", 50e-3, 100e6 / 8)


@dataclass(frozen=True)
class Training:
    """A job as the model sees it. `elements` are float32, `gradient` seconds of a microbatch, `steps` those of a local round.

    `sleeps` says that the workers wait in place of computing, which takes no core, and then make a gradient of zeros. `servers`
    is 1 without shards.
    """

    elements: int
    gradient: float
    workers: int
    microbatches: int = 0
    optimizer: str = "sgd"
    codec: str = "float32"
    servers: int = 1
    steps: int = 1
    sleeps: bool = False

    @property
    def bytes(self) -> int:
        """The parameters' bytes, in float32."""
        return 4 * self.elements

    @property
    def chunks(self) -> int:
        """Messages that a gradient, or the parameters, travel in."""
        return max(1, -(-self.bytes // CHUNK_BYTES))

    @property
    def shares(self) -> int:
        """Servers that hold parameters: no more than there are chunks."""
        return min(self.servers, self.chunks)

    @property
    def each(self) -> int:
        """Microbatches of the worker that has the most. Without a number of them, there are as many as workers."""
        return -(-(self.microbatches or self.workers) // self.workers)

    @property
    def working(self) -> int:
        """Workers that have any."""
        return min(self.workers, self.microbatches or self.workers)

    @property
    def gradients(self) -> int:
        """Gradients that a worker sends at each step: the sum of its microbatches, or, if they are rounded, each for itself."""
        return 1 if self.codec == "float32" else self.each


@dataclass(frozen=True)
class Model:
    """A training on a network, with what was measured. All times are seconds."""

    training: Training
    network: Network
    constants: Constants

    @cached_property
    def piece(self) -> float:
        """Bytes of a piece in float32."""
        return self.training.bytes / self.training.chunks

    @cached_property
    def up(self) -> float:
        """Bytes of a piece of a gradient as it travels."""
        return self.piece * self.constants.size[self.training.codec]

    @cached_property
    def down(self) -> float:
        """Bytes of a piece of the parameters as it travels."""
        encoded = codecs.CODECS[self.training.codec].parameters
        return self.piece * (self.constants.size[self.training.codec] if encoded else 1.0)

    @cached_property
    def tasks_a_step(self) -> int:
        """Microbatches that a worker computes between two exchanges."""
        return self.training.steps * self.training.each

    @cached_property
    def asleep(self) -> float:
        """What of a microbatch takes time and no core."""
        return self.training.gradient if self.training.sleeps else 0.0

    @cached_property
    def busy(self) -> float:
        """What of a microbatch takes a core. A local step has an update too."""
        job, constants = self.training, self.constants
        update = constants.update_byte[job.optimizer] if job.steps > 1 else 0.0
        return job.bytes * update + (job.bytes * constants.fill_byte if job.sleeps else job.gradient)

    @cached_property
    def compute(self) -> float:
        """C: the worker that has the most to compute."""
        return self.tasks_a_step * (self.asleep + self.busy)

    @cached_property
    def worker_writes(self) -> float:
        """A piece of a gradient, at the worker."""
        encode = self.constants.encode_byte[self.training.codec] * self.piece
        return self.constants.worker_message + self.constants.worker_send_byte * self.up + encode

    @cached_property
    def worker_reads(self) -> float:
        """A piece of the parameters, at the worker."""
        decode = self._parameters(self.constants.decode_byte[self.training.codec]) * self.piece
        copied = decode or self.constants.copy_byte * self.piece
        return self.constants.worker_message + self.constants.worker_receive_byte * self.down + copied

    @cached_property
    def server_reads(self) -> float:
        """A piece of a gradient, at the server that holds it."""
        decode = self.constants.decode_byte[self.training.codec] * self.piece
        return self.constants.server_message + self.constants.server_receive_byte * self.up + decode

    @cached_property
    def server_adds(self) -> float:
        """A piece of a gradient to another."""
        return self.constants.add_byte * self.piece

    @cached_property
    def server_updates(self) -> float:
        """A piece of the parameters, and writes the message for all workers."""
        optimizer = self.training.optimizer if self.training.steps == 1 else "momentum"
        encode = self._parameters(self.constants.encode_byte[self.training.codec])
        return (self.constants.update_byte[optimizer] + encode) * self.piece + self.constants.copy_byte * self.down

    @cached_property
    def server_writes(self) -> float:
        """A piece of the parameters to a worker."""
        return self.constants.server_message + self.constants.server_send_byte * self.down

    @cached_property
    def announces(self) -> float:
        """The cost for each of two servers of a shard's report that a piece has arrived, and of the answer."""
        return 2 * self.constants.server_message if self.training.shares > 1 else 0.0

    @cached_property
    def joins(self) -> float:
        """A worker's task, and the piece of the parameters that it takes along: at each server, and for each worker, the last."""
        return self.constants.copy_byte * self.down

    def _parameters(self, cost: float) -> float:
        """A cost of the codec, if it encodes parameters."""
        return cost if codecs.CODECS[self.training.codec].parameters else 0.0

    @cached_property
    def one_server(self) -> float:
        """All that a server does for one piece, the only one."""
        return self.server_reads + self.server_updates + self.server_writes + self.joins + self.constants.server_step

    @cached_property
    def chain(self) -> float:
        """F: one piece through all stages, the task included."""
        link = (self.up + self.down) / self.network.bandwidth + 2 * self.network.latency
        worker = self.worker_writes + self.worker_reads
        return worker + link + self.one_server

    @cached_property
    def parts(self) -> dict[str, float]:
        """What a step has for its resources. Server and links are those that have the most."""
        job, n = self.training, self.training.working
        held = -(-job.chunks // job.shares)
        came, go = n * job.gradients, n
        told = held * came * self.announces if job.shares > 1 else 0.0
        # The server that decides hears of all that came to shards.
        hears = (job.chunks - job.chunks // job.shares) * came * self.announces
        messages = self.constants.server_message * held * (came + go) + go * self.joins + max(told, hears)
        copied = held * (
            came * (self.server_reads - self.constants.server_message) + go * (self.server_writes - self.constants.server_message)
        )
        arithmetic = held * ((came - 1) * self.server_adds + self.server_updates)
        worker = job.chunks * (job.gradients * self.worker_writes + self.worker_reads)
        return {
            "compute": self.compute,
            "latency": 2 * self.network.latency,
            "worker": worker,
            "worker's link": job.chunks * max(job.gradients * self.up, self.down) / self.network.bandwidth,
            "server's link": held * n * max(job.gradients * self.up, self.down) / self.network.bandwidth,
            "messages": messages + self.constants.server_step,
            "bytes": copied,
            "update": arithmetic,
        }

    @cached_property
    def exchange(self) -> float:
        """All of a step but computing."""
        parts = self.parts
        server = parts["messages"] + parts["bytes"] + parts["update"]
        one_worker = self.worker_writes + self.worker_reads
        one_link = max(self.up, self.down) / self.network.bandwidth
        waits = [
            parts["worker"] - one_worker,
            parts["worker's link"] - one_link,
            parts["server's link"] - one_link,
            server - self.one_server,
        ]
        if self.network.cores:
            everybody = server + self.training.working * parts["worker"]
            waits.append((everybody - self.one_server - one_worker) / self.network.cores)
        return self.chain + max(0.0, *waits)

    @cached_property
    def seconds(self) -> float:
        """T, for a step; for a whole round, if steps are local."""
        crowd = max(1.0, self.training.working / self.network.cores) if self.network.cores else 1.0
        return self.tasks_a_step * max(self.asleep + self.busy, crowd * self.busy) + self.exchange

    @property
    def seconds_a_step(self) -> float:
        """T, divided by the local steps of a round."""
        return self.seconds / self.training.steps

    @property
    def efficiency(self) -> float:
        """The part of the time in which workers compute."""
        return self.compute / self.seconds

    @property
    def alone(self) -> float:
        """Seconds of a microbatch, and an update, in a process of its own that exchanges nothing."""
        return self.training.gradient + self.training.bytes * self.constants.update_byte[self.training.optimizer]

    @property
    def bound(self) -> str:
        """What most of a step's time goes to."""
        return max(self.parts, key=self.parts.__getitem__)


def tree_of_servers(model: Model, fan_in: int) -> tuple[int, float]:
    """The levels, and T, of servers that each serve `fan_in` others, or workers. Thalweg has none: this is what it would need.

    Pieces flow through all levels at once; so each adds the time of a chain, and the slowest stage counts once.
    """
    levels = max(1, math.ceil(math.log(model.training.workers, fan_in) - 1e-9))
    one = Model(
        replace(model.training, workers=min(fan_in, model.training.workers), microbatches=0), model.network, model.constants
    )
    return levels, one.seconds + (levels - 1) * one.chain

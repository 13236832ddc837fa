"""A cluster of hosts with TLS, certificates of clients and tokens: the bits are those of an open one, and nobody reads them."""

import secrets
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.numpy import load_file

from tests.end_to_end import hosts
from tests.end_to_end.command import Running, service, thalweg
from tests.end_to_end.hosts import Host, Network
from tests.end_to_end.watching import undisturbed
from thalweg.client.certificates import Authority, Made

_PROBLEM = hosts.problem()
pytestmark = [
    pytest.mark.ray,
    pytest.mark.nightly,
    pytest.mark.netns,
    pytest.mark.timeout(600),
    pytest.mark.skipif(_PROBLEM is not None, reason=str(_PROBLEM)),
]

TOKEN = secrets.token_hex(24)
# Two chunks, so that the shard has one. Few and large steps.
SETTINGS = ("model.layers[0].dense.units=4000", "training.epochs=2", "training.batch_size=400")
JOB = ("digits", *(word for setting in SETTINGS for word in ("--set", setting)))
# As many bytes of parameters as nothing else has by chance.
_BYTES = 32


class Files:
    """How each host shows who it is, and verifies others; or none of that, on a network that is trusted."""

    def __init__(self, folder: Path, network: dict[str, Host], encrypted: bool) -> None:
        self.authority = Authority.new(folder)
        self._encrypted = encrypted
        self._made: dict[str, Made] = {}
        for name, host in network.items():
            self._made[name] = self.authority.add(name, [host.address] if name in ("server", "shard") else [])

    def options(self, name: str) -> list[str]:
        """The options of a host's command."""
        serves = name in ("server", "shard")
        if not self._encrypted:
            return ["--trust-network"] if serves else []
        ca, made = str(self.authority.cert), self._made[name]
        options = ["--tls-ca", ca, "--tls-cert", str(made.cert), "--tls-key", str(made.key)]
        return [*options, "--tls-client-ca", ca] if serves else options


def train(folder: Path, encrypted: bool) -> tuple[str, Path, Path]:
    """Trains a job on a cluster of hosts. Gives the digest of the parameters, their file, and one with all that was sent."""
    seen, weights = folder / "seen", folder / "weights.safetensors"
    with ExitStack() as stack:
        network = stack.enter_context(Network(folder))
        of_name = {name: network.host(name) for name in ("server", "shard", "fleet1", "fleet2", "client")}
        files = Files(folder / "tls", of_name, encrypted)
        server = f"{of_name['server'].address}:7070"
        stack.enter_context(network.captured(seen, of_name["server"], of_name["shard"]))

        def start(name: str, *arguments: str) -> Running:
            host = of_name[name]
            command = (*arguments, *files.options(name))
            running, _ = stack.enter_context(service(host.home, *command, program=host.thalweg, THALWEG_TOKEN=TOKEN))
            return running

        serving = start("server", "serve", "--address", server, "--data", str(of_name["server"].home / "data"))
        start("shard", "shard", "--server", server, "--address", f"{of_name['shard'].address}:7071")
        serving.until(" is connected")
        for name in ("fleet1", "fleet2"):
            start(name, "fleet", "--server", server, "--slots", "1", "--name", name).until("connected to the server")
        client = of_name["client"]
        command = ("train", *JOB, "--weights", str(weights), "--server", server, *files.options("client"), "--json")
        ended = thalweg(client.home, *command, program=client.thalweg, THALWEG_TOKEN=TOKEN)
        assert ended.code == 0, ended.stderr
    return str(ended.answer["weights_sha256"]), weights, seen


class Run(NamedTuple):
    """What a run left: the digest of its parameters, and which of its secrets were seen on the network."""

    digest: str
    sees_token: bool
    sees_parameters: bool
    frames: int


def run(folder: Path, encrypted: bool) -> Run:
    digest, weights, seen = train(folder, encrypted)
    frames = seen.read_bytes()
    # Of each place a few bytes, so that they are within one frame, most of the time.
    slabs = [tensor.tobytes() for tensor in load_file(weights).values()]
    pieces = [slab[at : at + _BYTES] for slab in slabs for at in range(0, len(slab) - _BYTES, max(_BYTES, len(slab) // 50))]
    assert len(pieces) > 50
    return Run(digest, TOKEN.encode() in frames, any(piece in frames for piece in pieces), len(frames))


def test_nobody_on_the_network_sees_a_token_or_a_parameter(tmp_path: Path) -> None:
    opened, closed = run(tmp_path / "open", encrypted=False), run(tmp_path / "closed", encrypted=True)
    assert opened.digest == closed.digest == undisturbed("digits", *SETTINGS)
    # What was captured is the job's traffic: in clear text both are found.
    assert opened.sees_token
    assert opened.sees_parameters
    assert closed.frames >= opened.frames / 2
    assert not closed.sees_token
    assert not closed.sees_parameters

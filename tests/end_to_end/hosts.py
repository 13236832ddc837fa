"""Hosts with addresses of their own on this machine, joined by a switch: a network that can be cut, slowed and made lossy.

A host is a set of Linux namespaces (network, mounts, name), held by a process. The switch has a namespace of its own, and no way
leads from it to this machine's network. When the context of a `Network` ends, all processes of its hosts are killed, and nothing
of it is left. It needs root; `problem()` says what else is missing.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.end_to_end import capture, wire
from tests.end_to_end.command import THALWEG

_TOOLS = ("ip", "nsenter", "unshare", "mount", "hostname")
# A host keeps Ray's files and its shared memory to itself. The holder ends with the process that started it: then its stdin ends.
_HOST = (
    "mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && mount -t tmpfs tmpfs /dev/shm && hostname {name} && "
    "ip link set lo up && echo ready && exec cat"
)
_SECONDS = 20.0


def problem() -> str | None:
    """What this machine lacks for a `Network`; None if it can have one."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "hosts of their own addresses need root on Linux"
    missing = [tool for tool in _TOOLS if not shutil.which(tool)]
    if missing:
        return f"hosts of their own addresses need {', '.join(missing)} (Debian: iproute2, util-linux, hostname)"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "ip", "link", "add", "br0", "type", "bridge"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces or no bridge here: {tried.stderr.strip()}" if tried.returncode else None


def wire_problem() -> str | None:
    """What this machine lacks for `Network.impaired`; None if it can do that."""
    return None if Path("/dev/net/tun").exists() else "delays and losses need /dev/net/tun"


def run(*command: str) -> str:
    """Runs a command that is done at once, and gives what it printed."""
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    assert ended.returncode == 0, f"{shlex.join(command)}: {ended.stderr}"
    return ended.stdout


class _Namespaces:
    """Network, mounts and name of their own, held by a process."""

    def __init__(self, name: str) -> None:
        self.name = name
        command = ["unshare", "--net", "--mount", "--uts", "sh", "-c", _HOST.format(name=name)]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout
        assert self._holder.stdout.readline() == "ready\n", f"the host {name} did not start"
        self.pid = self._holder.pid
        self.enter = ("nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--")
        self._namespace = _network_of(self.pid)

    def __call__(self, *command: str) -> str:
        """Runs a command here that is done at once, and gives what it printed."""
        return run(*self.enter, *command)

    def processes(self) -> list[psutil.Process]:
        """The processes that run here, but for the holder."""
        found = [process for process in psutil.process_iter() if process.pid != self.pid]
        return [process for process in found if _network_of(process.pid) == self._namespace]

    def kill(self) -> None:
        """Kills all processes here, as a power cut would. The host stays, and can be used again."""
        while alive := [process for process in self.processes() if process.status() != psutil.STATUS_ZOMBIE]:
            for process in alive:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            psutil.wait_procs(alive, timeout=1)

    def remove(self) -> None:
        """Kills all processes here; the namespaces go with the last of them."""
        try:
            self.kill()
        finally:
            self._holder.kill()
            self._holder.communicate()


def _network_of(pid: int) -> str | None:
    """Which network namespace a process is in; None if it has ended."""
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return None


class Host(_Namespaces):
    """A host with an address."""

    def __init__(self, name: str, address: str, home: Path) -> None:
        super().__init__(name)
        self.address = address
        self.home = home
        home.mkdir(parents=True)
        self.thalweg = self.program(THALWEG)

    def program(self, path: Path) -> Path:
        """A script that runs a program on this host, for what takes the path of a program."""
        script = self.home / path.name
        script.write_text(f'#!/bin/sh\nexec {shlex.join(self.enter)} {shlex.quote(str(path))} "$@"\n')
        script.chmod(0o755)
        return script

    def listening(self) -> list[str]:
        """Where its processes listen for other hosts: address and port."""
        found = []
        for line in self("ss", "--tcp", "--listening", "--numeric", "--no-header").splitlines():
            ip, _, port = line.split()[3].rpartition(":")
            if ip.strip("[]").removeprefix("::ffff:") in ("*", "0.0.0.0", "::", self.address):
                found.append(f"{self.address}:{port}")
        return sorted(set(found))


class Network:
    """A switch, and hosts that are joined to it. A context manager; addresses are 10.88.0.2 and following."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._hosts = 0

    def __enter__(self) -> "Network":
        self._switch = _Namespaces("switch")
        self._stack.callback(self._switch.remove)
        self._bridge("lan")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _ip(self, *arguments: str) -> None:
        self._switch("ip", *arguments)

    def _bridge(self, name: str) -> None:
        self._ip("link", "add", name, "type", "bridge")
        self._ip("link", "set", name, "up")

    def host(self, name: str) -> Host:
        """A new host, joined to the switch by a port of the same name, of at most 10 characters."""
        self._hosts += 1
        host = Host(name, f"10.88.0.{self._hosts + 1}", self.folder / name)
        self._stack.callback(host.remove)
        self._ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        self._ip("link", "set", name, "master", "lan", "up")
        host("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host("ip", "link", "set", "eth0", "up")
        # Nobody answers there. It is how Ray finds out which address is the host's.
        host("ip", "route", "add", "default", "via", "10.88.0.1")
        return host

    def cut(self, host: Host) -> None:
        """Cuts a host off: what it and others send each other is lost, and neither is notified."""
        self._ip("link", "set", host.name, "down")

    def restore(self, host: Host) -> None:
        """Joins a host again that was cut off."""
        self._ip("link", "set", host.name, "up")

    @contextmanager
    def is_cut(self, host: Host) -> Iterator[None]:
        """Cuts a host off for as long as the context."""
        self.cut(host)
        try:
            yield
        finally:
            self.restore(host)

    @contextmanager
    def impaired(self, host: Host, delay_ms: float, jitter_ms: float, loss_percent: float) -> Iterator[dict[str, int]]:
        """Delays and loses frames from and to a host for as long as the context.

        Gives a dictionary that says afterwards how many frames `passed` and how many were `lost`.
        """
        near, far, bridge = f"{host.name}-n", f"{host.name}-f", f"{host.name}-b"
        options = (f"--delay-ms={delay_ms}", f"--jitter-ms={jitter_ms}", f"--loss-percent={loss_percent}")
        command = [*self._switch.enter, sys.executable, wire.__file__, near, far, *options]
        line = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        facts: dict[str, int] = {}
        try:
            assert line.stdout
            assert line.stdout.readline() == "ready\n", "the line did not come up"
            self._bridge(bridge)
            for device, its_bridge in ((near, bridge), (far, "lan"), (host.name, bridge)):
                self._ip("link", "set", device, "master", its_bridge, "up")
            yield facts
            self._ip("link", "set", host.name, "master", "lan")
            self._ip("link", "delete", bridge)
        finally:
            line.terminate()
            answer: dict[str, Any] = json.loads(line.communicate(timeout=_SECONDS)[0])
            facts.update(answer)

    @contextmanager
    def captured(self, path: Path, *hosts: Host) -> Iterator[None]:
        """Writes all frames from and to some hosts to a file for as long as the context. None is lost."""
        names = [host.name for host in hosts]
        command = [*self._switch.enter, sys.executable, capture.__file__, str(path), *names]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n", "nothing is captured"
            yield
            process.communicate(timeout=_SECONDS)
            assert process.returncode == 0, "frames were lost"
        finally:
            process.kill()

    @contextmanager
    def limited(self, host: Host, megabits: float) -> Iterator[None]:
        """Limits what passes to a host, and from it, to a number of megabits a second for as long as the context. Needs `tc`."""
        # What passes in two milliseconds: on a fast line that is more than the segments which Linux hands on in one, and which
        # would else be cut into frames, at a cost that no real line has.
        burst = max(4000, round(megabits * 250))
        shape = ("root", "tbf", "rate", f"{megabits}mbit", "burst", str(burst), "latency", "400ms")
        ends = ((self._switch, host.name), (host, "eth0"))
        for end, device in ends:
            end("tc", "qdisc", "add", "dev", device, *shape)
        try:
            yield
        finally:
            for end, device in ends:
                end("tc", "qdisc", "delete", "dev", device, "root")

"""What the client does to the process that uses it: nothing; and what it says in processes that were forked from it."""

import json
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from tests.client.helpers import NOWHERE
from tests.end_to_end.cluster import running_server
from thalweg.client import Client, ThalwegError
from thalweg.server.process import Server

# So that what this process prepared for itself is not inherited.
SETTINGS = ("GRPC_ENABLE_FORK_SUPPORT", "GRPC_EXPERIMENTS", "GRPC_VERBOSITY")

PURE = """
import os, pathlib, sys
before = dict(os.environ)
from thalweg.contract import process
def forbidden():
    raise AssertionError("settings of the whole process are made")
process.prepare = process.keep_freed = forbidden
import thalweg.client
import thalweg.workers.ray.fleet, thalweg.workers.ray.driver, thalweg.workers.worker
from thalweg.client.embedded import Embedded
embedded = Embedded(pathlib.Path(sys.argv[1]))
embedded.client.submit("xor")
embedded.close()
assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())
"""

# What the process is like is compared after grpc and numpy are imported, which start threads of their own.
IMPORTED = """
import logging, os, signal, sys, threading, warnings
environment = dict(os.environ)
import grpc, numpy

def loggers():
    named = {"": logging.root, **logging.Logger.manager.loggerDict}
    return {
        name: (each.level, each.handlers, each.filters, each.propagate, each.disabled)
        for name, each in named.items() if isinstance(each, logging.Logger)
    }

def state():
    return {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "threads": threading.enumerate(),
        "tasks": sorted(os.listdir("/proc/self/task")) if sys.platform == "linux" else [],
        "logging": logging.root.manager.disable,
        "warnings": list(warnings.filters),
        "errors": numpy.geterr(),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, list(sys.meta_path)),
        "folder": os.getcwd(),
    }

before, known = state(), loggers()
import thalweg.client
after = state()
assert after == before, [(name, before[name], after[name]) for name in before if after[name] != before[name]]
assert dict(os.environ) == environment
untouched = (logging.NOTSET, [], [], True, False)
for name, each in loggers().items():
    assert each == known.get(name, untouched), (name, each)
heavy = "numba llvmlite ray scipy matplotlib typer rich threadpoolctl thalweg.server thalweg.workers thalweg.learning".split()
assert not set(heavy) & set(sys.modules), set(heavy) & set(sys.modules)
"""

LATE = """
import sys, thalweg.client.models, thalweg.client.cli.app
assert {"thalweg.learning", "typer", "rich"} <= set(sys.modules)
"""

FORKED = """
import json, multiprocessing, pathlib, sys
from thalweg.client import Client, ThalwegError
from thalweg.client.embedded import Embedded

def said(action):
    try:
        return len(action())
    except ThalwegError as error:
        return f"{error.reason}: {error}"

def child(client, queue):
    queue.put(said(client.jobs))
    def own():
        with Client(client.address, sys.argv[2] or None) as another:
            return another.jobs()
    queue.put(said(own))
    client.close()

if len(sys.argv) > 3:
    embedded = Embedded(pathlib.Path(sys.argv[3]))
with Client(sys.argv[1], sys.argv[2] or None) as client:
    client.jobs()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(client, queue))
    process.start()
    inherited, own = queue.get(), queue.get()
    process.join()
    print(json.dumps([inherited, own, len(client.jobs()), process.exitcode]))
if len(sys.argv) > 3:
    embedded.close()
"""


def run(program: str, *arguments: object, **environment: str) -> str:
    """What a program printed, in a process whose environment nobody prepared."""
    variables = {name: value for name, value in os.environ.items() if name not in SETTINGS} | environment
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=variables, timeout=120).stdout


def forked(server: Server, *arguments: object, **environment: str) -> tuple[Any, Any]:
    """What the inherited client and one of its own say in a forked process, while the first one's process continues."""
    inherited, own, after, code = json.loads(run(FORKED, server.address, "", *arguments, **environment))
    assert (after, code) == (0, 0)
    return inherited, own


def test_importing_and_embedding_change_nothing_in_the_process(tmp_path: object) -> None:
    run(PURE, tmp_path)


def test_importing_the_client_changes_nothing_in_the_process_and_loads_neither_extras_nor_the_mathematics() -> None:
    run(IMPORTED)


def test_what_the_client_imports_late_can_be_imported() -> None:
    """And so the test of what it does not import at first says something."""
    run(LATE)


@pytest.mark.parametrize("module", ["thalweg.command", "thalweg.workers.ray.actor"])
def test_processes_are_prepared_before_they_import_grpc(module: str) -> None:
    run(f"import sys, {module}; assert 'grpc' not in sys.modules")


def test_a_forked_process_opens_a_client_of_its_own(server: Server) -> None:
    inherited, own = forked(server)
    assert inherited.startswith("LOCAL: this client of 127.0.0.1:")
    assert "open another one in the new process" in inherited
    assert own == 0


def test_with_the_support_for_forks_also_the_inherited_client_works(server: Server) -> None:
    assert forked(server, GRPC_ENABLE_FORK_SUPPORT="1") == (0, 0)


def test_without_the_support_for_forks_a_forked_process_says_what_to_do(server: Server) -> None:
    inherited, own = forked(server, GRPC_ENABLE_FORK_SUPPORT="0")
    assert "open another one in the new process" in inherited
    assert own.startswith("LOCAL: this process was forked")
    assert "spawn" in own


def test_a_process_forked_from_one_with_a_server_says_what_to_do(server: Server, tmp_path: object) -> None:
    _, own = forked(server, f"{tmp_path}/embedded")
    assert own.startswith("LOCAL: this process was forked from one that used gRPC")


def test_what_a_closed_client_made_says_so(tmp_path: Any) -> None:
    with running_server(tmp_path) as server:
        with Client(server.address) as client:
            job = client.submit("xor")
        for action in (client.jobs, job.refresh, job.cancel, job.wait, lambda: list(job.watch()), job.parameters, job.history):
            with pytest.raises(ThalwegError, match=f"the client of {server.address} was closed") as raised:
                action()
            assert raised.value.reason == "LOCAL"


def test_a_watch_whose_client_is_closed_says_so(server: Server) -> None:
    client = Client(server.address)
    job = client.submit("xor")
    problems: list[Exception] = []
    begun = threading.Event()

    def watch() -> None:
        try:
            for _ in job.watch():
                begun.set()
        except ThalwegError as error:
            problems.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    begun.wait()
    client.close()
    thread.join()
    assert "was closed" in str(problems[0])


def test_a_client_that_was_never_used_is_closed() -> None:
    Client(NOWHERE).close()


@pytest.mark.parametrize("when", ["import numpy", "import grpc", "from thalweg.client.cli import"])
def test_ctrl_c_while_the_command_is_imported_ends_it_without_a_word(when: str) -> None:
    """A hook among the importers sends the signal when a module is looked for."""
    module = when.removeprefix("import ").removeprefix("from ").removesuffix(" import")
    program = f"""
import os, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
from thalweg.command import main
main(["--version"])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")

"""The table `folder | may import` of docs/architecture.md, and what else the house forbids."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import UnionType
from typing import NamedTuple, get_args

import pytest

from tests.syntax import changes
from thalweg.server.deciding import decisions
from thalweg.server.deciding.decisions import ForArrays, ForJob, ForWorkers

HOUSE = Path(__file__).parents[1]
TABLE = (HOUSE / "docs" / "architecture.md").read_text()
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")
# The composition root: it alone may import the others, late.
ROOTS = {"client/thalweg/client/composition.py"}

# The rooms of the server, in the order in which they build on one another, and the rooms that each may import. A module beside
# the rooms is a room of its own.
ROOMS: dict[str, set[str]] = {
    "settings": set(),
    "validation": set(),
    "access": set(),
    "deciding": {"settings"},
    "tally": set(),
    "telemetry": {"deciding", "tally"},
    "arrays": {"deciding", "telemetry"},
    "streams": {"settings", "deciding", "telemetry", "arrays"},
    "storage": {"settings", "validation", "access", "deciding", "telemetry", "arrays"},
    "driving": {"settings", "validation", "access", "deciding", "tally", "telemetry", "arrays", "streams", "storage"},
    "observing": {"deciding", "tally", "driving"},
    "services": {"validation", "access", "deciding", "arrays", "streams", "driving", "observing"},
    "sharding": {"deciding", "arrays", "streams", "observing", "services"},
    "process": {"settings", "access", "streams", "storage", "driving", "observing", "services"},
}

# The only module that opens channels.
CHANNELS = "proto/thalweg/contract/endpoint.py"

# A process of Thalweg's own begins there; in `driver_process.py`, with the first line of the program that it starts.
ENTRY_POINTS = {
    "client/thalweg/command.py",
    "workers/thalweg/workers/doctor/__main__.py",
    "workers/thalweg/workers/ray/actor.py",
    "workers/thalweg/workers/ray/driver_process.py",
}


class Import(NamedTuple):
    """An import of one of the house's packages. `late` within a function, `typed` only for the type checker."""

    module: str
    line: int
    late: bool
    typed: bool

    @property
    def package(self) -> str:
        """The package's name, without `thalweg`."""
        return self.module.split(".")[1]


def packages() -> dict[str, set[str]]:
    """Each package's folder, and the packages that it may import besides itself, as the table says."""
    rows = re.findall(r"^\| `([a-z0-9/]+)` \|.*\|(.*)\|$", TABLE, re.MULTILINE)
    return {folder: set(re.findall(r"`([a-z0-9]+)`", allowed.split(";")[0])) for folder, allowed in rows}


def name_of(folder: str) -> str:
    return folder.rsplit("/", 1)[1]


def modules(folder: str) -> list[Path]:
    return [path for path in sorted((HOUSE / folder).rglob("*.py")) if not GENERATED.search(path.name)]


def beside(folder: str) -> list[Path]:
    """The modules beside a package, in the same source root: programs that begin with it."""
    return sorted((HOUSE / folder).parent.glob("*.py"))


def imports(tree: ast.AST, late: bool = False, typed: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        within = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        checked = typed or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            assert "thalweg" not in names, f"line {node.lineno}: all packages at once"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif imports_by_name(node) and isinstance(node, ast.Call) and isinstance(node.args[0], ast.Constant):
            # What is imported by its name at run time counts as well.
            names = [str(node.args[0].value)]
        for name in names:
            if name.startswith("thalweg."):
                yield Import(name, getattr(node, "lineno", 0), late, typed)
        yield from imports(node, within, checked)


def imports_by_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__"))


def calls(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call | ast.Raise):
            what = node.func if isinstance(node, ast.Call) else node.exc
            if what is not None:
                yield ast.unparse(what), node.lineno


def test_the_table_is_read() -> None:
    assert packages() == {
        "proto/thalweg/v1": set(),
        "proto/thalweg/contract": {"v1"},
        "learning/thalweg/learning": {"v1", "contract"},
        "server/thalweg/server": {"v1", "contract", "learning"},
        "workers/thalweg/workers": {"v1", "contract", "learning"},
        "client/thalweg/client": {"v1", "contract", "learning"},
    }
    assert "the others only in `composition`, late" in TABLE
    assert "of that only `optimizers` and `schedules`" in TABLE


@pytest.mark.parametrize("folder", packages())
def test_imports_obey_the_table(folder: str) -> None:
    allowed = packages()[folder] | {name_of(folder)}
    for path in modules(folder) + beside(folder):
        relative = path.relative_to(HOUSE).as_posix()
        for found in imports(ast.parse(path.read_text())):
            late_root = relative in ROOTS and (found.late or found.typed)
            assert found.package in allowed or late_root, f"{relative}:{found.line} imports {found.package}"


@pytest.mark.parametrize(
    "text",
    [
        "import thalweg.server.validation",
        "from thalweg import server",
        "def f():\n  from thalweg.server.validation import complete",
        "importlib.import_module('thalweg.server')",
        "__import__('thalweg.server')",
        "if TYPE_CHECKING:\n  from thalweg.server import validation",
    ],
)
def test_imports_are_found(text: str) -> None:
    assert [found.package for found in imports(ast.parse(text))] == ["server"]


def test_all_packages_are_never_imported_at_once() -> None:
    with pytest.raises(AssertionError, match="all packages at once"):
        list(imports(ast.parse("import thalweg\nthalweg.server")))


def test_the_composition_root_imports_the_others_and_so_the_table_says_something() -> None:
    found = {each.package for root in ROOTS for each in imports(ast.parse((HOUSE / root).read_text()))}
    assert {"server", "workers"} <= found


def test_of_the_mathematics_the_server_knows_how_parameters_are_updated_and_no_model() -> None:
    rooms = set()
    for path in modules("server/thalweg/server"):
        rooms |= {each.module.split(".")[2] for each in imports(ast.parse(path.read_text())) if each.package == "learning"}
    assert rooms == {"optimizers", "schedules"}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_the_server_import_what_the_table_says(room: str) -> None:
    """No less either, so that the table is true, and only rooms before them, so that there is no circle."""
    assert ROOMS[room] <= set(list(ROOMS)[: list(ROOMS).index(room)])
    found: dict[str, set[str]] = {}
    for path in modules("server/thalweg/server"):
        inside = path.relative_to(HOUSE / "server/thalweg/server").with_suffix("").parts
        if inside[0] == room:
            for each in imports(ast.parse(path.read_text())):
                if each.package == "server" and each.module.split(".")[2] != room:
                    found.setdefault(each.module.split(".")[2], set()).add(f"{'/'.join(inside)}:{each.line}")
    assert found.keys() == ROOMS[room], found


def test_every_room_of_the_server_is_in_the_table() -> None:
    rooms = {path.relative_to(HOUSE / "server/thalweg/server").parts[0] for path in modules("server/thalweg/server")}
    assert {room.removesuffix(".py") for room in rooms} - {"__init__"} == ROOMS.keys()


def foreign(folder: str) -> dict[str, set[str]]:
    """For each module of a folder, the packages that it imports, early or late."""
    found: dict[str, set[str]] = {}
    for path in modules(folder):
        names = []
        for node in ast.walk(ast.parse(path.read_text())):
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found[path.relative_to(HOUSE).as_posix()] = {name.split(".")[0] for name in names}
    return found


def test_the_mathematics_knows_neither_calls_nor_threads() -> None:
    folder = "learning/thalweg/learning"
    assert not {path: found for path, found in foreign(folder).items() if found & {"grpc", "asyncio", "concurrent"}}
    assert not [
        path for path in modules(folder) if any(what.endswith("Thread") for what, _ in calls(ast.parse(path.read_text())))
    ]


@pytest.mark.parametrize("folder", sorted(packages().keys() - {"workers/thalweg/workers"}))
def test_only_workers_know_ray(folder: str) -> None:
    assert not {path for path, found in foreign(folder).items() if "ray" in found}
    assert any("ray" in found for found in foreign("workers/thalweg/workers").values())


def test_names_of_what_is_imported_are_computed_for_code_of_a_jobs_author_alone() -> None:
    found = {
        path
        for path, tree, _ in all_modules()
        for node in ast.walk(tree)
        if imports_by_name(node) and isinstance(node, ast.Call) and not isinstance(node.args[0], ast.Constant)
    }
    assert found == {"learning/thalweg/learning/entry_points.py"}


def test_nothing_waits_for_time_to_pass_in_the_server() -> None:
    for path in modules("server/thalweg/server"):
        text = path.read_text()
        assert not [line for what, line in calls(ast.parse(text)) if what in ("time.sleep", "sleep")], path
        assert "from time import" not in text, path


@pytest.mark.parametrize("folder", packages())
def test_one_place_opens_channels(folder: str) -> None:
    for path in modules(folder):
        found = [line for what, line in calls(ast.parse(path.read_text())) if re.search(r"\b(in)?secure_channel$", what)]
        assert bool(found) == (path.relative_to(HOUSE).as_posix() == CHANNELS), path


@cache
def all_modules() -> list[tuple[str, ast.Module, str]]:
    """Every module of the product, entry points included: its path, its tree, its text."""
    roots = {HOUSE / folder.split("/", maxsplit=1)[0] for folder in packages()}
    paths = [path for root in sorted(roots) for path in sorted(root.rglob("*.py")) if not GENERATED.search(path.name)]
    texts = {path.relative_to(HOUSE).as_posix(): path.read_text() for path in paths}
    return [(path, ast.parse(text), text) for path, text in texts.items()]


def test_entry_points_alone_make_settings_of_the_whole_process() -> None:
    for relative, _, text in all_modules():
        if relative != "proto/thalweg/contract/process.py":
            assert ("contract.process" in text or "contract import process" in text) == (relative in ENTRY_POINTS), relative
        raises = re.search(r"\braise_descriptor_limit\b", text) and relative != "proto/thalweg/contract/resources.py"
        assert bool(raises) == (relative == "client/thalweg/client/cli/app.py"), relative


# What changes the whole process, as it is called or assigned to, and the modules that may do it.
PROCESS_WIDE = {
    r"os\.environ(\[\]|=|\.(setdefault|update|pop|popitem|clear|__\w+__))|os\.(putenv|unsetenv)": {
        # Called by entry points, which prepare a process of Thalweg's own.
        "proto/thalweg/contract/process.py",
        # The command, before it prints: a COLUMNS of 0 is taken away, of which rich would make a terminal of no width.
        "client/thalweg/client/cli/output.py",
        # While XLA makes its threads, whose number it reads there alone.
        "learning/thalweg/learning/jax_function.py",
        # Where PyTorch keeps what it compiles, which it reads there alone, and writes there itself.
        "learning/thalweg/learning/pytorch/compilation.py",
    },
    r"signal\.(signal|set_wakeup_fd|setitimer|alarm|pthread_sigmask|siginterrupt)": {
        # The command: Ctrl-C while it is imported, and at its end.
        "client/thalweg/command.py",
        # The command: Ctrl-C and SIGTERM end it in order. The handlers of before are put back.
        "client/thalweg/client/cli/signals.py",
    },
    r".*mallopt": {"proto/thalweg/contract/process.py"},
    r"logging\.(basicConfig|disable|captureWarnings|setLoggerClass)|logging\.config\..*|.*\.(addHandler|setLevel)": {
        # The commands that run a server, a shard or a fleet.
        "client/thalweg/client/cli/serving/log_options.py",
    },
    r"threadpoolctl\.threadpool_limits|.*ThreadpoolController.*\.limit": {
        # A worker pins its BLAS as long as it works: equal bits need equal threads.
        "workers/thalweg/workers/worker.py",
        # A process of `thalweg doctor` computes as a worker does.
        "workers/thalweg/workers/doctor/__main__.py",
    },
    r"resource\.(setrlimit|prlimit)": {
        # Called by the command.
        "proto/thalweg/contract/resources.py",
    },
    r"os\.(chdir|fchdir)": {
        # The driver, a process of its own: workers import nothing from the folder in which a command is called.
        "workers/thalweg/workers/ray/driver.py",
    },
    r"os\.umask": {
        # The command, while it writes the file of a token, and puts it back.
        "client/thalweg/client/cli/serving/command.py",
    },
    r"os\.register_at_fork": {
        # A lock of this process is none of a process that it forks.
        "proto/thalweg/contract/locks.py",
        # A process that the code of a job's author forks must not go on as a worker.
        "learning/thalweg/learning/forks.py",
        # What a forked process writes to the log must not be taken for the worker's last words.
        "workers/thalweg/workers/crashes.py",
    },
    r"numpy\.(seterr|seterrcall|setbufsize|set_printoptions)|numpy\.random\.seed|random\.seed": {
        # While code of a job's author runs. The generators are then as they were before.
        "learning/thalweg/learning/randomness.py",
    },
    r"gc\.(disable|enable|freeze|set_threshold)|sys\.(setswitchinterval|setrecursionlimit|settrace|setprofile)": set[str](),
    r"sys\.(excepthook|unraisablehook|displayhook|stdin|stdout|stderr|path|meta_path|modules)(=|\[\])": {
        # While code of a job's author runs, it prints a bounded number of characters.
        "learning/thalweg/learning/printing.py",
        # Modules of a job's code are forgotten after the job.
        "workers/thalweg/workers/code.py",
    },
    r"sys\.(path|meta_path|path_hooks|modules)\.(append|insert|extend|remove|pop|clear|update|setdefault)": {
        # A worker imports a job's code from its folder as long as it works.
        "workers/thalweg/workers/code.py",
    },
    r"tempfile\.tempdir=|threading\.excepthook=|threading\.stack_size|socket\.setdefaulttimeout|time\.tzset": set[str](),
    r"faulthandler\..*": {
        # A worker's process leaves word of where its code crashed, or held Python's lock for too long.
        "workers/thalweg/workers/crashes.py",
    },
    r"os\._exit=": {
        # In a worker's process, while code of a job's author runs.
        "workers/thalweg/workers/watch.py",
    },
    r"warnings\.(simplefilter|filterwarnings|resetwarnings)|locale\.setlocale|atexit\.register": set[str](),
    r"multiprocessing\.set_start_method|asyncio\.set_event_loop_policy": set[str](),
    r"os\.(nice|sched_setaffinity|setpriority)": {
        # A process of `thalweg doctor`, which computes with fewer processors than the other one.
        "workers/thalweg/workers/doctor/__main__.py",
    },
}


@pytest.mark.parametrize("what", PROCESS_WIDE)
def test_only_named_modules_change_the_whole_process(what: str) -> None:
    found = {path for path, tree, _ in all_modules() if any(re.fullmatch(what, change) for change in changes(tree))}
    assert found == PROCESS_WIDE[what]


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("import os\nos.environ['A'] = 'b'", r"os.environ[]"),
        ("import os\ndel os.environ['A']", "os.environ[]"),
        ("import os\nos.environ |= {'A': 'b'}", "os.environ="),
        ("import os as system\nsystem.environ.update(a='b')", "os.environ.update"),
        ("from os import environ as e\ne['A'] = 'b'", "os.environ[]"),
        ("import sys\nsys.excepthook = hook", "sys.excepthook="),
        ("import sys\nsys.path.insert(0, '.')", "sys.path.insert"),
        ("import sys\nsys.modules['a'] = None", "sys.modules[]"),
        ("import signal\ndef f():\n  signal.signal(2, f)", "signal.signal"),
        ("from signal import signal as on\non(2, f)", "signal.signal"),
        ("import numpy as n\nn.seterr(all='raise')", "numpy.seterr"),
        ("from socket import setdefaulttimeout\nsetdefaulttimeout(1)", "socket.setdefaulttimeout"),
    ],
)
def test_changes_of_the_whole_process_are_found(text: str, change: str) -> None:
    assert change in set(changes(ast.parse(text)))
    assert any(re.fullmatch(what, change) for what in PROCESS_WIDE)


@pytest.mark.parametrize("folder", packages())
def test_nothing_is_left_to_be_done(folder: str) -> None:
    for path in modules(folder):
        assert not [line for what, line in calls(ast.parse(path.read_text())) if what.startswith("NotImplemented")], path


@pytest.mark.parametrize("folder", packages())
def test_every_module_says_what_it_is_for(folder: str) -> None:
    for path in modules(folder):
        assert ast.get_docstring(ast.parse(path.read_text())), path


EXECUTORS = {
    ForArrays: "server/thalweg/server/arrays/local.py",
    ForWorkers: "server/thalweg/server/streams/connections.py",
    ForJob: "server/thalweg/server/driving/job/driver.py",
}


def test_every_decision_belongs_to_one_family() -> None:
    kinds = [kind for family in EXECUTORS for kind in get_args(family)]
    assert len(kinds) == len(set(kinds))
    defined = {each for each in vars(decisions).values() if isinstance(each, type) and each.__module__ == decisions.__name__}
    assert set(kinds) == set(get_args(decisions.Decision)) == defined


def matched(path: Path) -> Iterator[set[str]]:
    """For each `match` of a module, the classes that its cases name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Match):
            patterns = [pattern for case in node.cases for pattern in ast.walk(case.pattern)]
            yield {ast.unparse(each.cls).split(".")[-1] for each in patterns if isinstance(each, ast.MatchClass)}


@pytest.mark.parametrize(("family", "executor"), EXECUTORS.items())
def test_every_family_of_decisions_has_one_executor(family: UnionType, executor: str) -> None:
    names = {kind.__name__ for kind in get_args(family)}
    found = [
        (path.relative_to(HOUSE).as_posix(), classes)
        for path in modules("server/thalweg/server")
        for classes in matched(path)
        if classes & names
    ]
    assert found == [(executor, names)]


# Where strangers write code: the places in the table "Where do I add" of docs/architecture.md, and what they implement.
EXTENSION_POINTS = [
    "learning/thalweg/learning/optimizers",
    "learning/thalweg/learning/schedules",
    "learning/thalweg/learning/sequential/layers",
    "learning/thalweg/learning/sequential/losses",
    "learning/thalweg/learning/metrics",
    "learning/thalweg/learning/data",
    "learning/thalweg/learning/objective.py",
    "learning/thalweg/learning/batch.py",
    "learning/thalweg/learning/reductions.py",
    "learning/thalweg/learning/registry.py",
    "proto/thalweg/contract/codecs",
    "server/thalweg/server/deciding/synchrony",
]


def untyped(text: str) -> list[str]:
    """The lines of a module in which `Any` stands for more than the dtype of an array, or gets another name."""
    arrays = re.sub(r"NDArray\[Any\]|dtype\[Any\]|tuple\[Any, \.\.\.\]", "", text)
    return re.findall(r"^(?!from typing).*\bAny\b.*$|^.*\bAny as\b.*$", arrays, re.MULTILINE)


@pytest.mark.parametrize("place", EXTENSION_POINTS)
def test_extension_points_are_typed(place: str) -> None:
    """`Any` stands there for the dtype of an array at most."""
    found = [HOUSE / place] if place.endswith(".py") else modules(place)
    assert place.endswith(".py") or len(found) > 1
    for path in found:
        assert not untyped(path.read_text()), path


@pytest.mark.parametrize(
    "line",
    ["x: Any = 1", "x: typing.Any = 1", "x: dict[str, Any] = {}", "from typing import Any as Thing", "    Any as Thing,"],
)
def test_what_is_untyped_is_found(line: str) -> None:
    assert untyped(f"from typing import Any\nx: NDArray[Any]\n{line}\n") == [line]

"""What is found by an entry point, and how what goes wrong in an author's code is told."""

import platform
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from thalweg.learning import entry_points, printing
from thalweg.learning.errors import MistakeError, NodeError
from thalweg.v1 import job_pb2

FIELD = "model.torch.entrypoint"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that an author's modules are imported from."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def _mistake(entrypoint: str) -> str:
    with pytest.raises(MistakeError) as caught:
        entry_points.load(entrypoint, FIELD)
    return str(caught.value)


def _call(name: str = "nets:build") -> str:
    found = entry_points.load(name, FIELD)
    with pytest.raises(MistakeError) as caught, entry_points.running("model.torch"):
        found()
    return str(caught.value)


def test_finds_a_callable(folder: Path) -> None:
    (folder / "package").mkdir()
    (folder / "package" / "nets.py").write_text("class Net:\n    @staticmethod\n    def make(width): return width + 1\n")
    entry = job_pb2.EntryPoint(entrypoint="package.nets:Net.make", arguments='{"width": 16}')
    found = entry_points.load(entry.entrypoint, FIELD)
    assert found(**entry_points.arguments(entry)) == 17


def test_arguments_keep_their_types() -> None:
    entry = job_pb2.EntryPoint(arguments='{"a":1,"b":[1.0,"x",null],"c":{"d":true}}')
    assert repr(entry_points.arguments(entry)) == "{'a': 1, 'b': [1.0, 'x', None], 'c': {'d': True}}"
    assert entry_points.arguments(job_pb2.EntryPoint()) == {}


@pytest.mark.parametrize("entrypoint", ["nets_that_are_not:resnet", "nets_that_are_not.deeper:resnet"])
def test_no_module(entrypoint: str) -> None:
    problem = "there is no module nets_that_are_not; it must be in code.path, or installed where the workers run"
    assert _mistake(entrypoint) == f"{FIELD}: {problem}"


def test_a_name_that_differs_by_case_is_meant(folder: Path) -> None:
    (folder / "nets.py").write_text("class CNN: ...\nnn = Cn = None\n")
    assert _mistake("nets:Cnn").endswith("has no Cnn; did you mean CNN?")


def test_wrong_arguments_are_those_of_the_job(folder: Path) -> None:
    (folder / "nets.py").write_text(
        "class Net:\n    def __init__(self, depth, wide=1): ...\ndef inner(depth): Net(depth, width=2)\n"
    )

    def mistake(name: str, arguments: str) -> str:
        entry = job_pb2.EntryPoint(entrypoint=f"nets:{name}", arguments=arguments)
        with pytest.raises(MistakeError) as caught, entry_points.running("model.torch"):
            entry_points.call(entry_points.load(entry.entrypoint, FIELD), entry, "model.torch")
        return str(caught.value)

    wrong = "Net.__init__() got an unexpected keyword argument 'width'"
    assert mistake("Net", '{"width": 3}') == f"model.torch.arguments: {wrong}; it takes (depth, wide=1)"
    assert mistake("Net", "") == (
        "model.torch.arguments: Net.__init__() missing 1 required positional argument: 'depth'; it takes (depth, wide=1)"
    )
    # What the code itself does wrong is not the job's.
    deeper = mistake("inner", '{"depth": 3}')
    assert deeper.startswith(f"model.torch: TypeError: {wrong} (at ")
    assert "nets.py:3 in inner" in deeper


def test_no_such_name(folder: Path) -> None:
    (folder / "nets.py").write_text("def resnet18(): ...\n")
    assert _mistake("nets:resnet") == f"{FIELD}: the module nets (nets.py) has no resnet; did you mean resnet18?"
    assert _mistake("nets:resnet18.small") == f"{FIELD}: resnet18 has no small"


@pytest.mark.parametrize(
    ("file", "code", "told"),
    [
        ("random.py", "", "the module random (random.py) has no build; that is not your random.py"),
        ("json.py", "import json\njson.build\n", "(at nets.py:2: json.build); that is not your json.py"),
        ("json.py", "from json import build\n", "(at nets.py:1: from json import build); that is not your json.py"),
        ("json.py", "import json\njson.dmups\n", "that is not your json.py"),
        ("sys.py", "import sys\nsys.build\n", "that is not your sys.py"),
        ("beside.py", "from .beside import x\n", "; give the folder that the package is in as code.path"),
    ],
)
def test_a_module_is_not_the_one_that_is_meant(folder: Path, file: str, code: str, told: str) -> None:
    (folder / file).write_text("def build(): ...\n")
    (folder / "nets.py").write_text(code)
    found = _mistake("nets:build" if code else "random:build")
    assert told in found
    assert ("; rename yours" in found) == ("not your" in told)


def test_a_module_of_a_package_of_the_authors_is_his(folder: Path) -> None:
    (folder / "json_of_a_job").mkdir()
    (folder / "json_of_a_job" / "__init__.py").touch()
    (folder / "nets.py").write_text("import json_of_a_job\njson_of_a_job.build\n")
    assert _mistake("nets:build").endswith("(at nets.py:2: json_of_a_job.build)")


def test_not_callable(folder: Path) -> None:
    (folder / "nets.py").write_text("width = 3\n")
    assert _mistake("nets:width") == f"{FIELD}: nets:width is of type int, which cannot be called"


def test_a_missing_package(folder: Path) -> None:
    (folder / "nets.py").write_text("import os\nimport einops_that_is_not.layers\n")
    problem = f"the code needs the package einops_that_is_not, which is not installed where it runs, on {platform.node()}"
    where = "(at nets.py:2: import einops_that_is_not.layers)"
    advice = "install it there, or add it to code.requirements for workers, or to code.path if it is yours"
    assert _mistake("nets:build") == f"{FIELD}: ModuleNotFoundError: {problem} {where}; {advice}"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x = 1\nx.y\n", "AttributeError: 'int' object has no attribute 'y' (at nets.py:2: x.y)"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 (at nets.py:2: sys.exit(3))"),
        ("def build(:\n", "SyntaxError: invalid syntax (at nets.py:1: def build(:)"),
        ("class Own(BaseException): ...\nraise Own\n", "Own (at nets.py:2: raise Own)"),
        (
            "def __getattr__(name): raise OSError(name)\n",
            "OSError: build (at nets.py:1 in __getattr__: def ",
        ),
        ("raise ValueError('two\\nlines')\n", "ValueError: two lines (at nets.py:1: "),
    ],
)
def test_import_that_raises(folder: Path, code: str, told: str) -> None:
    (folder / "nets.py").write_text(code)
    assert _mistake("nets:build").startswith(f"{FIELD}: {told}")


def test_call_that_raises(folder: Path) -> None:
    """The last calls of the author's own are shown, without those of this package and of libraries."""
    (folder / "blocks.py").write_text("import json\n\ndef block(text):\n    return json.loads(text)\n")
    (folder / "nets.py").write_text("import blocks\n\ndef build():\n    return blocks.block('{')\n")
    told = _call()
    assert told.startswith("model.torch: JSONDecodeError: Expecting property name")
    assert "(at " in told
    assert told.endswith("nets.py:4 in build: return blocks.block('{'), then blocks.py:4 in block: return json.loads(text))")


def test_exit_in_a_call(folder: Path) -> None:
    (folder / "nets.py").write_text("def build():\n    raise SystemExit\n")
    assert _call().startswith("model.torch: SystemExit (at ")


def test_exception_without_a_text(folder: Path) -> None:
    code = "class Bad(Exception):\n    def __str__(self): raise OSError\n\ndef build(): raise Bad\n"
    (folder / "nets.py").write_text(code)
    assert _call().startswith("model.torch: Bad: (its text cannot be shown)")


def test_long_texts_are_cut(folder: Path) -> None:
    line = "raise ValueError('" + "x" * 100_000 + "')"
    (folder / "nets.py").write_text(f"def build():\n    {line}\n")
    assert len(_call()) < 1000


@pytest.mark.parametrize("error", [MistakeError("model: no"), NodeError("no GPU"), MemoryError(), KeyboardInterrupt()])
def test_what_is_right_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, entry_points.running("model.torch"), entry_points.running("model"):
        raise error
    assert caught.value is error


def test_prints_are_bounded(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_points, "output", printing._Output())
    (folder / "nets.py").write_text("def build():\n    print('hello')\n    for _ in range(1000): print('x' * 9999)\n")
    found = entry_points.load("nets:build", FIELD)
    for _ in range(2):
        with entry_points.running("model.torch"):
            found()
    printed = capsys.readouterr().out
    assert printed.startswith("hello\nx")
    assert len(printed) < 100_000
    assert printed.count("is left out for a minute") == 1


def test_output_is_as_before_when_the_last_thread_leaves() -> None:
    before, entered, leave = sys.stdout, threading.Event(), threading.Event()

    def other() -> None:
        with entry_points.running("model.torch"):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with entry_points.running("model.torch"):
        thread.start()
        entered.wait()
    assert sys.stdout is not before
    leave.set()
    thread.join()
    assert sys.stdout is before

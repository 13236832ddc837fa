"""Jobs with code of their own, as their authors write them, and as the client hands them over."""

import json
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from tests.client.conftest import Command
from tests.end_to_end.cluster import running_server
from thalweg.client import Client, ThalwegError, load_job
from thalweg.client.cli.serving import command as serving
from thalweg.client.errors import LocalError
from thalweg.client.jobfile import toml_of
from thalweg.client.mapping import values_of
from thalweg.client.models import Landscape, check, gradcheck, predict
from thalweg.server import validation
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

TOML = """
[model]
torch = { entrypoint = "nets:resnet", arguments = { width = 16, blocks = [2, 2.0], norm = { eps = 1e-5, name = "batch" } } }
loss = { entrypoint = "nets:loss" }
[code]
path = "./nets.py"
requirements = ["einops==0.8.1"]
[data]
builtin = "digits"
[optimizer]
sgd = {}
"""
ARGUMENTS = '{"blocks":[2,2.0],"norm":{"eps":1e-05,"name":"batch"},"width":16}'
JOB: dict[str, Any] = {
    "model": {"torch": "nets:resnet", "loss": "model"},
    "data": {"builtin": "digits"},
    "optimizer": {"sgd": {}},
}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job file, in a folder of its own, beside its code."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "nets.py").write_text("def resnet(width): ...\n")
    (tmp_path / "jobs" / "job.toml").write_text(TOML)
    return tmp_path / "jobs" / "job.toml"


def told(job: Any, settings: Any = ()) -> str:
    with pytest.raises(ThalwegError) as caught:
        load_job(job, settings)
    assert caught.value.reason == "INVALID_ARGUMENT"
    return str(caught.value)


def laid(*settings: str) -> job_pb2.Model:
    return load_job(JOB, settings).spec.model


def with_arguments(arguments: Any) -> dict[str, Any]:
    return JOB | {"model": {"torch": {"entrypoint": "nets:resnet", "arguments": arguments}, "loss": "model"}}


def test_a_job_file_has_tables_of_arguments(job: Path) -> None:
    loaded = load_job(job)
    model = loaded.spec.model
    assert (model.torch.entrypoint, model.torch.arguments, model.loss) == ("nets:resnet", ARGUMENTS, "nets:loss")
    assert (loaded.code, loaded.spec.code.path) == (job.parent / "nets.py", "./nets.py")
    assert list(loaded.spec.code.requirements) == ["einops==0.8.1"]


def test_an_entry_point_may_be_written_as_its_name_alone() -> None:
    assert laid().torch == job_pb2.EntryPoint(entrypoint="nets:resnet")


def test_what_was_read_is_written_as_it_was(job: Path, tmp_path: Path) -> None:
    spec = load_job(job).spec
    written = toml_of(spec)
    assert 'loss = { entrypoint = "nets:loss" }' in written or '[model.loss]\nentrypoint = "nets:loss"' in written
    assert "width = 16\n" in written
    (tmp_path / "jobs" / "again.toml").write_text(written)
    assert load_job(tmp_path / "jobs" / "again.toml").spec == spec
    assert load_job(spec, {"code.path": str(job.parent / "nets.py")}).spec.model == spec.model
    spec.code.sha256 = "0" * 64
    completed = validation.complete(spec)
    assert load_job(completed).spec == completed
    assert values_of(completed)["model"]["torch"]["arguments"]["blocks"] == [2, 2.0]


SCALARS = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
NAMES = st.text(max_size=5)
TABLES = st.dictionaries(
    NAMES,
    st.recursive(SCALARS, lambda below: st.lists(below, max_size=3) | st.dictionaries(NAMES, below, max_size=3), max_leaves=9),
    max_size=4,
)


@given(TABLES)
def test_arguments_come_back_as_they_were(table: dict[str, Any]) -> None:
    spec = load_job(with_arguments(table)).spec
    assert repr(values_of(spec)["model"]["torch"]["arguments"]) == repr(json.loads(json.dumps(table, sort_keys=True)))
    assert load_job(spec).spec == spec


@given(TABLES)
def test_equal_arguments_are_equal_texts(table: dict[str, Any]) -> None:
    other = dict(reversed(table.items()))
    texts = {load_job(with_arguments(each)).spec.model.torch.arguments for each in (table, other, json.dumps(table, indent=3))}
    assert len(texts) == 1


def test_numbers_of_numpy_are_numbers() -> None:
    spec = load_job(with_arguments({"a": np.int64(3), "b": np.float64(0.5), "c": (1, np.int8(2))})).spec
    assert spec.model.torch.arguments == '{"a":3,"b":0.5,"c":[1,2]}'


def test_settings_reach_into_arguments(job: Path) -> None:
    path = {"code.path": str(job.parent / "nets.py")}
    settings = {"model.torch.arguments.width": 32, "model.torch.arguments.norm.eps": 1, "model.torch.arguments.new.deep": True}
    torch = load_job(job, settings | path).spec.model.torch
    assert json.loads(torch.arguments) == {
        "blocks": [2, 2.0],
        "norm": {"eps": 1, "name": "batch"},
        "new": {"deep": True},
        "width": 32,
    }
    assert laid("model.torch.arguments.width=32", "model.torch.arguments.name=x").torch.arguments == '{"name":"x","width":32}'
    assert laid("model.torch.arguments={ a = 1 }").torch.arguments == '{"a":1}'
    assert laid("model.torch=other:net").torch == job_pb2.EntryPoint(entrypoint="other:net")
    assert laid("model.loss=nets:loss").loss == "nets:loss"
    assert laid("model.loss={ entrypoint = 'nets:loss' }").loss == "nets:loss"
    assert laid("model.loss.entrypoint=nets:loss").loss == "nets:loss"
    assert laid("model.jax.entrypoint=nets:net").WhichOneof("kind") == "jax"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([1], ": a list is not a table"),
        ("[1]", ": '[1]' is not a table"),
        ("[" * 9999, ": '" + "[" * 37 + "...' is not a table"),
        ({"a": [1, None]}, ".a[1]: null is not allowed; leave the argument out"),
        ({"a": {"b": float("nan")}}, ".a.b: nan is not a finite number"),
        ({3: 4}, ": 3 is not a name; names of arguments are strings"),
        ({"a": "\ud800"}, r".a: '\ud800' is not a string in UTF-8"),
        (
            {"day": date(2026, 1, 1)},
            ".day: a value of the type date is not allowed; use a string, a number, true or false, a list or a table",
        ),
    ],
)
def test_what_is_wrong_with_arguments_is_told(arguments: Any, problem: str) -> None:
    assert told(with_arguments(arguments)) == f"model.torch.arguments{problem}"


def test_arguments_without_end_are_refused() -> None:
    table: dict[str, Any] = {}
    table["a"] = table
    assert told(with_arguments(table)).endswith(": is nested too deeply")


@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        ({}, "model.loss.entrypoint: must be given"),
        ({"entrypoint": "nets"}, "model.loss.entrypoint: invalid value 'nets'; use a module and a name in it, as in nets:resnet"),
        ({"entrypoint": 3}, "model.loss.entrypoint: invalid value 3; use a module and a name in it, as in nets:resnet"),
        ({"entrypoint": "a:b", "arguments": {}}, "model.loss.arguments: unknown (one of entrypoint)"),
        (3, "model.loss: 3 is not a string"),
    ],
)
def test_what_is_wrong_with_a_loss_is_told(loss: Any, problem: str) -> None:
    assert told(JOB | {"model": {"torch": "nets:resnet", "loss": loss}}) == problem


def test_settings_do_not_reach_into_lists_of_arguments() -> None:
    problem = "model.torch.arguments.a[0]: items of lists in a table cannot be set alone; set the whole list"
    assert told(JOB, ["model.torch.arguments.a[0]=1"]) == problem


def test_code_that_is_not_there_is_told(tmp_path: Path) -> None:
    job = JOB | {"code": {"path": str(tmp_path / "nets.py")}}
    assert told(job) == f"code.path: there is no file {tmp_path / 'nets.py'}"
    assert told(JOB | {"code": {"path": ""}}) == "code.path: is empty; give the path of a file"


def test_another_path_is_another_archive(job: Path) -> None:
    spec = load_job(job).spec
    spec.code.sha256 = "0" * 64
    assert load_job(spec).code is None
    loaded = load_job(spec, {"code.path": str(job.parent)})
    assert (loaded.code, loaded.spec.code.sha256) == (job.parent, "")


def test_code_is_uploaded_as_an_archive(job: Path, tmp_path: Path) -> None:
    with running_server(tmp_path / "server", allow_code=True) as server, Client(server.address) as client:
        first = client.submit(job)
        second = client.submit(job, {"code.path": str(job.parent / "nets.py")})
        assert first.spec.code.sha256 == second.spec.code.sha256
        with zipfile.ZipFile(tmp_path / "server" / "uploads" / first.spec.code.sha256) as archive:
            assert archive.namelist() == ["nets.py"]
        # A job that is taken from the server has its code there.
        assert client.submit(first.spec).spec.code == first.spec.code
        for each in client.jobs():
            each.cancel()
            each.delete()
        assert list((tmp_path / "server" / "uploads").iterdir()) == []


def test_show_prints_what_was_written(job: Path, tmp_path: Path, command: Command) -> None:
    with running_server(tmp_path / "server", allow_code=True) as server, Client(server.address) as client:
        submitted = client.submit(job)
        printed = command("show", submitted.id, "--server", server.address)
        shown = command("show", submitted.id, "--server", server.address, "--json").json["settings"]
    (tmp_path / "again.toml").write_text(printed.out)
    assert load_job(tmp_path / "again.toml").spec == submitted.spec
    assert shown["model"]["loss"] == {"entrypoint": "nets:loss"}
    assert shown["model"]["torch"]["arguments"]["width"] == 16


def test_a_server_that_allows_no_code_says_what_to_do(job: Path, tmp_path: Path) -> None:
    with (
        running_server(tmp_path / "server") as server,
        Client(server.address) as client,
        pytest.raises(ThalwegError) as caught,
    ):
        client.submit(job)
    assert caught.value.reason == "CODE_NOT_ALLOWED"
    assert str(caught.value) == (
        "model.torch.entrypoint: nets:resnet is code, and this server accepts no jobs with code; "
        "its operator can allow it: thalweg serve --allow-code"
    )


def test_the_client_runs_no_code(tmp_path: Path) -> None:
    """A job of a server may name any function that is installed here."""
    mark = tmp_path / "mark"
    evil = {"entrypoint": "pathlib:Path.touch", "arguments": {"self": str(mark)}}
    system = {"entrypoint": "os:system", "arguments": {"command": f"touch {mark}"}}
    for kind in ("torch", "jax", "python"):
        for entry in (evil, system):
            spec = json_format.ParseDict({}, job_pb2.JobSpec())
            spec.CopyFrom(load_job(JOB | {"model": {kind: entry} | ({"loss": "model"} if kind == "torch" else {})}).spec)
            header = pb.ParametersHeader(layout=job_pb2.Layout(dtype="float32"))
            with pytest.raises(ThalwegError, match="is code, which workers run and this process does not"):
                predict(spec, header, np.empty(0, np.float32), [[1.0]])
            with pytest.raises(ThalwegError, match="is code, which workers run and this process does not"):
                gradcheck(spec, lambda _: Path())
            with pytest.raises(ThalwegError, match="is code, which workers run and this process does not"):
                Landscape(spec, lambda _: Path())
            check(load_job(spec))
    assert not mark.exists()


@pytest.mark.parametrize("command_name", ["serve", "fleet"])
def test_commands_have_the_option(command: Command, command_name: str) -> None:
    assert "--allow-code" in command(command_name, "--help").out


@pytest.mark.parametrize(
    ("arguments", "variable", "allowed"),
    [((), None, False), ((), "", False), ((), "0", False), ((), "1", True), ((), "true", True), (("--allow-code",), None, True)],
)
def test_code_is_allowed_by_an_option_or_a_variable(
    command: Command, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], variable: str | None, allowed: bool
) -> None:
    found: list[bool] = []

    def start(*_: Any, allow_code: bool, **__: Any) -> None:
        found.append(allow_code)
        raise LocalError("that is enough")

    monkeypatch.delenv("THALWEG_ALLOW_CODE", raising=False)
    if variable is not None:
        monkeypatch.setenv("THALWEG_ALLOW_CODE", variable)
    for name in ("start_server", "start_fleet"):
        monkeypatch.setattr(serving, name, start)
    command("serve", "--address", "127.0.0.1:0", *arguments)
    command("fleet", *arguments)
    assert found == [allowed, allowed]


def test_requirements_need_code(command: Command) -> None:
    printed = command("fleet", "--allow-requirements")
    assert printed.code != 0
    assert "--allow-requirements: needs --allow-code" in printed.err

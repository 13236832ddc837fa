"""What users get wrong: one clear line on stderr that names it, the exit code, and no traceback."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from tests.client.conftest import Command
from tests.client.helpers import NOWHERE, Cluster, Printed, names_in
from tests.end_to_end.cluster import running_server, train
from thalweg.client import JobFailedError, ThalwegError, load_job, local
from thalweg.client.cli.app import main
from thalweg.server.process import Server

USAGE, FAILURE = 2, 1


def check(printed: Printed, code: int, message: str) -> None:
    assert printed.code == code, printed.err
    assert printed.err.startswith(f"thalweg: {message}"), printed.err
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    assert printed.out == ""


SETTINGS = [
    ("optimizer.adan={}", "optimizer.adan: unknown; did you mean adam? (one of sgd, momentum, adagrad,"),
    ("model.layers[0].dnse.units=3", "model.layers[0].dnse: unknown; did you mean dense? (one of dense, relu,"),
    ("training.epocs=3", "training.epocs: unknown; did you mean epochs? (one of epochs, batch_size,"),
    ("epochs=3", "epochs: unknown; did you mean training.epochs?"),
    ("training.epochs=many", "training.epochs: 'many' is not a whole number"),
    ("training.workers=-1", "training.workers: -1 is not allowed; it must be at least 1"),
    ("data.npz=nowhere.npz", "data.npz: there is no file nowhere.npz"),
    ("model.initial.file=nowhere.safetensors", "model.initial.file: there is no file nowhere.safetensors"),
    ("data.csv=.", "data.csv: there is no file below . whose name ends in .csv or .csv.gz"),
    ("data.csv=/dev/null", "data.csv: /dev/null is a device; give the path of a file"),
    ("data.csv=", "data.csv: is empty; give the path of a file"),
    ("data.csv=a\0b", "data.csv: there is no file a"),
    ("data.csv=/proc/self/nowhere/x", "data.csv: there is no file /proc/self/nowhere/x"),
    (os.fsdecode(b"data.csv=\xff.csv"), "data.csv: '\\udcff.csv' is not a string in UTF-8; texts and names of files must be"),
    ("data.csv=nowhere.csv", "data.csv: there is no file nowhere.csv"),
    ("training.epochs", "'training.epochs' is not a setting; write KEY=VALUE, as in training.epochs=5"),
]
CHECKED_BY_THE_SERVER = [
    ("optimizer.adam.learning_rate=-1", "optimizer.adam.learning_rate: -1 is not allowed; it must be above 0"),
    ("training.batch_size=0", "training.batch_size: 0 is not allowed; it must be at least 1"),
    ("training.gradient=numeric", "training.gradient: unknown value 'numeric'; expected one of backpropagation, numerical,"),
    ("model.loss=cross_entropy", "model.loss: unknown value 'cross_entropy'; expected one of mean_squared_error, softmax"),
    ("model.layers=[]", "model.layers: has 0 items; it must have at least 1"),
    ("data.validation_fraction=1.5", "data.validation_fraction: 1.5 is not allowed; it must be at least 0 and below 1"),
    ("optimizer.groups=[{frozen=true}]", "optimizer.groups[0].pattern: must be given"),
    (
        "optimizer.groups=[{pattern='*', learning_rate_factor=-1}]",
        "optimizer.groups[0].learning_rate_factor: -1 is not allowed; it must be at least 0",
    ),
    ("name=My job", "name: invalid value 'My job'; use 1 to 50"),
]


@pytest.mark.parametrize("name", ["submit", "train", "gradcheck"])
@pytest.mark.parametrize(("setting", "message"), SETTINGS)
def test_a_wrong_setting(name: str, setting: str, message: str, command: Command) -> None:
    check(command(name, "xor", "--set", setting), USAGE, message)


@pytest.mark.parametrize("name", ["submit", "train", "gradcheck"])
@pytest.mark.parametrize(("setting", "message"), CHECKED_BY_THE_SERVER)
def test_a_setting_that_the_server_refuses(name: str, setting: str, message: str, cluster: Cluster, command: Command) -> None:
    server = [] if name == "gradcheck" else ["--server", cluster.address]
    check(command(name, "xor", "--set", setting, *server), USAGE, message)


def test_a_wrong_job_file_is_told_with_its_name(command: Command) -> None:
    Path("job.toml").write_text("[training]\nepocs = 3\n")
    check(command("train", "job.toml"), USAGE, "job.toml: training.epocs: unknown; did you mean epochs?")
    Path("job.toml").write_text("[training]\nepochs = \n")
    check(command("train", "job.toml"), USAGE, "job.toml, line 2, column 10: Invalid value")
    check(command("train", "jobb.toml"), USAGE, "jobb.toml: there is no such file, and no packaged job of this name")


def test_several_mistakes_are_a_line_each(command: Command) -> None:
    Path("job.toml").write_text("sed = 3\n[training]\nepochs = 'x'\n")
    printed = command("train", "job.toml")
    assert printed.code == USAGE
    assert [line.split(":")[:3] for line in printed.err.splitlines()] == [
        ["thalweg", " job.toml", " sed"],
        ["thalweg", " job.toml", " training.epochs"],
    ]


NAN = np.ones((9, 2))
NAN[5, 1] = np.nan
# What is found only when the data are loaded: arrays, settings, the error.
DATA: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "NaN": (
        {"x": NAN, "y": np.ones(9)},
        {},
        "data.npz: x holds NaN or infinite values, 1 in all, the first at sample 5, feature 1",
    ),
    "labels out of range": (
        {"x": np.ones((4, 2)), "y": np.array([0, 1, 2, 3])},
        {"model.loss": "softmax_cross_entropy", "model.layers": [{"dense": {"units": 3}}]},
        "model.layers: the model has 3 outputs, so labels must be 0 to 2, but the data's y has 3",
    ),
    "targets of another shape": (
        {"x": np.ones((4, 2)), "y": np.ones((4, 3))},
        {"model.loss": "mean_squared_error"},
        "model.layers: ",
    ),
    "samples of another shape": (
        {"x": np.ones((4, 2, 2)), "y": np.ones(4)},
        {},
        "model.layers: ",
    ),
    "an array is missing": ({"x": np.ones((4, 2))}, {}, "data.npz: 'a.npz' has no array y; it has 'x'"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_does_not_fit_is_told_by_gradcheck(case: str, command: Command) -> None:
    arrays, settings, message = DATA[case]
    np.savez("a.npz", **arrays)
    options = [word for path, value in settings.items() for word in ("--set", f"{path}={toml(value)}")]
    check(command("gradcheck", "xor", "--set", "data.npz=a.npz", *options), USAGE, message)


@pytest.mark.parametrize("case", DATA)
def test_data_that_does_not_fit_fails_the_job(case: str, cluster: Cluster, command: Command) -> None:
    arrays, settings, message = DATA[case]
    np.savez("a.npz", **arrays)
    job = cluster.client.submit("xor", {"data.npz": "a.npz", **settings})
    with pytest.raises(JobFailedError) as caught:
        job.wait()
    assert caught.value.error.startswith(message)
    printed = command("watch", job.id, "--server", cluster.address)
    assert printed.code == FAILURE
    assert printed.err.splitlines()[-1].startswith(f"thalweg: job {job.id} failed: {message}")
    assert caught.value.error in command("jobs", job.id, "--server", cluster.address).out


def test_a_builtin_that_does_not_exist_fails_the_job(tmp_path: Path) -> None:
    with running_server(tmp_path / "server") as server:
        job = train(server, load_job("xor", {"data.builtin": "xr"}).spec)
    assert job.error == "data.builtin: unknown data set 'xr'; expected one of digits, and, or, nand, xor; did you mean 'xor'?"


def test_a_group_without_tensors_fails_the_job(cluster: Cluster) -> None:
    job = cluster.client.submit("xor", {"optimizer.groups": [{"pattern": "*.gamma", "frozen": True}]})
    with pytest.raises(JobFailedError) as caught:
        job.wait()
    assert caught.value.error.startswith("optimizer.groups[0].pattern: '*.gamma' matches none of the model's tensors, which are ")


def toml(value: Any) -> str:
    """A value as it is typed."""
    match value:
        case dict():
            return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case _:
            return str(value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit", "xor"],
        ["train", "xor"],
        ["jobs"],
        ["watch", "a"],
        ["cancel", "a"],
        ["scale", "a", "2"],
        ["delete", "a"],
        ["weights", "a"],
        ["predict", "a", "x.npy"],
        ["plot", "a"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_server_that_is_not_there(arguments: list[str], command: Command) -> None:
    printed = command(*arguments, "--server", NOWHERE)
    check(printed, FAILURE, f"cannot reach a Thalweg server at {NOWHERE}: nothing listens there")


@pytest.mark.parametrize(
    "arguments",
    [["jobs", "a"], ["watch", "a"], ["cancel", "a"], ["scale", "a", "2"], ["delete", "a"], ["weights", "a"], ["plot", "a"]],
    ids=lambda arguments: arguments[0],
)
def test_a_job_that_is_not_there(arguments: list[str], cluster: Cluster, command: Command) -> None:
    check(command(*arguments, "--server", cluster.address), FAILURE, "there is no job a on this server")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["weights", "digits", "-o", "nowhere/w.safetensors"], "cannot write {folder}/nowhere/w.safetensors: there is no folder"),
        (["plot", "digits", "-o", "nowhere/p.png"], "cannot write {folder}/nowhere/p.png: there is no folder"),
        (["delete", "waiting"], "job waiting has not ended yet; cancel it first"),
        (["weights", "waiting"], "job waiting has no parameters yet: no worker has initialised them"),
        (["plot", "waiting", "--slice", "0.weight[0,0]"], "job waiting has not ended yet"),
        (["scale", "digits", "3"], "job digits has ended"),
        (["submit", "xor", "--id", "digits"], "job digits already exists; choose another id, or give none"),
    ],
)
def test_what_cannot_be_done(
    arguments: list[str], message: str, cluster: Cluster, waiting: None, command: Command, tmp_path: Path
) -> None:
    check(command(*arguments, "--server", cluster.address), FAILURE, message.format(folder=tmp_path))


@pytest.fixture
def waiting(cluster: Cluster) -> Iterator[None]:
    """A job for which no fleet has room."""
    job = cluster.client.submit("xor", {"training.threads_per_worker": 1000}, id="waiting")
    yield
    job.cancel()
    job.delete()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "digits", "nowhere.npy"], "INPUT: there is no file nowhere.npy"),
        (["predict", "digits", "pipe"], "INPUT: pipe is a pipe; give the path of a file"),
        (["predict", "digits", "small.npy"], "x: has the shape (1, 2); the job was trained on samples of shape (64,)"),
        (["predict", "gate", "nan.npy"], "x: holds NaN or infinite values, 1 in all, the first at sample 5, feature 1"),
        (["predict", "gate", "small.npy", "-o", "out.txt"], "--output: out.txt: the name must end in one of .npy, .npz, .csv"),
        (["weights", "gate", "-o", "."], "--output: {folder} is a folder; give the path of a file"),
        (["plot", "gate", "-o", "a.gif"], "--output: a.gif: the name of a picture must end in one of .png, .svg, .pdf"),
        (["plot", "gate", "--slice", "0.weight"], "--slice: '0.weight' names no weight; write TENSOR[I,J]"),
        (["plot", "gate", "--slice", "0.wieght[0,0]"], "--slice: there is no tensor '0.wieght'; did you mean 0.weight?"),
        (["plot", "gate", "--slice", "0.weight[8,0]"], "--slice: 0.weight[8,0] is outside"),
        (["scale", "gate", "--", "-1"], "Invalid value for 'WORKERS'"),
        (["scale", "gate", "99999"], "workers: 99999 is not allowed; it must be at least 1 and at most 10000"),
        (["plot", "gate", "--slice", "0.weight[0,0]", "--slice", "0.bias[0]"], "--slice: is given 2 times"),
        (["submit", "xor", "--id", "My_id"], "job_id: invalid job id 'My_id'; use 1 to 63"),
        (["train", "xor", "--weights", "nowhere/w"], "--weights: there is no folder nowhere"),
        (["train", "xor", "--weights", "."], "--weights: . is a folder"),
        (["jobs", "--data", "."], "--data: cannot be used with --server"),
        (["jobs", "--token-file", "nowhere"], "--token-file: cannot read nowhere: No such file or directory"),
        (["jobs", "--token-file", "~nobody-at-all/x"], "--token-file: cannot read ~nobody-at-all/x: No such file"),
        (["jobs", "--token-file", "pipe"], "--token-file: pipe is a pipe; give the path of a file"),
        (["train", "pipe"], "pipe: pipe is a pipe; give the path of a file"),
        (["submit", "xor", "--set", "model.initial.file=pipe"], "model.initial.file: pipe is a pipe; give the path of a file"),
        (["jobs", "--token-file", "empty"], "--token-file: empty is empty"),
        (["jobs", "--token-file", "small.npy"], "--token-file: small.npy is not a text file"),
        (["jobs", "--nonsense"], "No such option: --nonsense"),
    ],
)
def test_what_was_given_is_wrong(arguments: list[str], message: str, cluster: Cluster, command: Command, tmp_path: Path) -> None:
    np.save("small.npy", [[1.0, 2.0]])
    np.save("nan.npy", NAN)
    Path("empty").touch()
    os.mkfifo("pipe")
    check(command(*arguments, "--server", cluster.address), USAGE, message.format(folder=tmp_path))


@pytest.mark.parametrize(
    "arguments",
    [
        ["weights", "gate", "-o", "{}"],
        ["predict", "gate", "-o", "{}"],
        ["plot", "gate", "-o", "{}"],
        ["init", "-o", "{}", "--force"],
        ["train", "xor", "--weights", "{}"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_is_no_regular_file_is_not_written(arguments: list[str], cluster: Cluster, command: Command, tmp_path: Path) -> None:
    option = "--weights" if arguments[0] == "train" else "--output"
    ending = {"predict": ".npy", "plot": ".png"}.get(arguments[0], ".safetensors")
    os.mkfifo(f"pipe{ending}")
    Path(f"device{ending}").symlink_to("/dev/full")
    Path(f"folder{ending}").mkdir()
    server = [] if arguments[0] == "init" else ["--server", cluster.address]
    before = names_in(tmp_path)
    for kind in ("pipe", "device", "folder"):
        path = tmp_path / f"{kind}{ending}"
        printed = command(*(argument.format(path) for argument in arguments), *server)
        check(printed, USAGE, f"{option}: {path} is a {kind}; give the path of a file")
    assert names_in(tmp_path) == before
    assert Path(f"pipe{ending}").is_fifo()
    assert Path(f"device{ending}").is_symlink()


# What keeps root from every file.
_BOUND = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may read everything")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gradcheck", "xor", "--set", "data.csv=closed/x"], "data.csv: cannot read closed/x: Permission denied"),
        (["gradcheck", "xor", "--set", "data.csv=secret"], "data.csv: cannot read secret: Permission denied"),
        (["train", "xor", "--set", "data.npz=secret"], "data.npz: cannot read secret: Permission denied"),
        (["train", "xor", "--set", "model.initial.file=secret"], "model.initial.file: cannot read secret: Permission denied"),
        (["train", "secret"], "cannot read secret: Permission denied"),
        (["train", "xor", "--weights", "closed/x"], "--weights: cannot write closed/x: Permission denied"),
        (["init", "-o", "closed/x"], "--output: cannot write {folder}/closed/x: Permission denied"),
        (["jobs", "--data", "closed"], "--data: cannot read closed: Permission denied"),
        (["jobs", "--data", "closed/x"], "--data: cannot read closed/x: Permission denied"),
        (["jobs", "--token-file", "secret"], "--token-file: cannot read secret: Permission denied"),
    ],
    ids=lambda value: " ".join(value[-1:]) if isinstance(value, list) else "",
)
def test_what_may_not_be_read(arguments: list[str], message: str, tmp_path: Path) -> None:
    Path("secret").touch(mode=0)
    Path("closed").mkdir(mode=0)
    finished = process(*arguments, before=_BOUND if os.geteuid() == 0 else [])
    check(Printed(finished.returncode, finished.stdout, finished.stderr), USAGE, message.format(folder=tmp_path))


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_not_taken_for_empty() -> None:
    Path("closed").mkdir(mode=0)
    finished = process("data", "check", "closed", before=_BOUND if os.geteuid() == 0 else [])
    printed = Printed(finished.returncode, finished.stdout, finished.stderr)
    check(printed, FAILURE, "FILE: cannot read closed: Permission denied")


def test_a_data_folder_that_may_not_be_entered(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    check(command("train", "xor", "--data", "closed"), FAILURE, "cannot use the data folder closed: Permission denied")


def test_data_that_fails_while_it_is_read_is_not_taken_for_output(command: Command) -> None:
    message = "data.csv: cannot read /proc/self/mem: Input/output error"
    for name in ("gradcheck", "train"):
        check(command(name, "xor", "--set", "data.csv=/proc/self/mem"), USAGE, message)


@pytest.mark.parametrize(
    "arguments", [["show"], ["predict"], ["jobs"], ["cancel"], ["train", "--resume"], ["weights"]], ids="-".join
)
def test_an_id_that_is_not_text(arguments: list[str], cluster: Cluster, command: Command) -> None:
    printed = command(*arguments, os.fsdecode(b"\xff\xfe"), "--server", cluster.address)
    check(printed, USAGE, "job_id: invalid job id '\\udcff\\udcfe'; it is not UTF-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["jobs", "--data", ""], "Invalid value for '--data': a path must not be empty"),
        (["serve", "--data", ""], "Invalid value for '--data': a path must not be empty"),
        (["train", "xor", "--weights", ""], "Invalid value for '--weights': a path must not be empty"),
        (["init", "-o", ""], "Invalid value for '--output' / '-o': a path must not be empty"),
        (["jobs", "--token-file", ""], "Invalid value for '--token-file': a path must not be empty"),
        (["predict", "a", ""], "Invalid value for '[INPUT]...': a path must not be empty"),
        (["train", ""], "JOB: is empty; give a packaged job (and, digits, nand, or, xor) or the path of a job file"),
        (["train", "."], "cannot read .: Is a directory"),
        (["jobs", "--data", "file"], "--data: file is no folder"),
    ],
)
def test_a_path_that_will_not_do(arguments: list[str], message: str, command: Command, tmp_path: Path) -> None:
    Path("file").touch()
    check(command(*arguments), USAGE, message)
    assert names_in(tmp_path) == ["file"]


def test_an_empty_path_is_not_the_current_folder_in_python() -> None:
    with pytest.raises(ThalwegError, match=r"^path: is empty"):
        local(data="")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit", "xor"], "--server: a submitted job needs a running server; give its HOST:PORT"),
        (["jobs", "--server", "a:b"], "server: 'a:b' is not an address; write HOST:PORT"),
        (["serve", "--address", "a:b"], "--address: 'a:b' is not an address; write HOST:PORT"),
        (["shard", "--server", "a:b"], "--server: 'a:b' is not an address; write HOST:PORT"),
        (["shard", "--address", "a:b"], "--address: 'a:b' is not an address; write HOST:PORT"),
        (["serve", "--shard-of", "a:b"], "--shard-of: 'a:b' is not an address; write HOST:PORT"),
        (
            ["serve", "--shard-of", "a:1", "--max-running", "3"],
            "--shard-of: can be used with --address, --token-file and --trust-network only",
        ),
        (
            ["serve", "--address", "0.0.0.0:0"],
            "--address: 0.0.0.0:0 can be reached from other machines, so the server needs a token",
        ),
        (["serve", "--max-upload", "0"], "Invalid value for '--max-upload'"),
        (["serve", "--max-running", "0"], "Invalid value for '--max-running'"),
        (
            ["serve", "--keep-uploads", "2 weeks"],
            "--keep-uploads: '2 weeks' is not a time span; write a number and a unit, as in 90s",
        ),
        (["serve", "--keep-uploads", "9.9m"], "--keep-uploads: must be at least 10m, so that no file is removed before its job"),
        (["fleet", "--server", "a:b"], "--server: 'a:b' is not an address"),
        (["fleet", "--ray-address", "auto", "--slots", "2"], "--slots: cannot be used with --ray-address"),
        (["jobs", "--data", "nowhere"], "--data: there is no folder nowhere"),
        (["frobnicate"], "No such command 'frobnicate'."),
        (["submit"], "Missing argument 'JOB'."),
    ],
)
def test_what_was_given_is_wrong_without_a_server(arguments: list[str], message: str, command: Command) -> None:
    check(command(*arguments), USAGE, message)


def test_a_token_that_will_not_do(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THALWEG_TOKEN", "two\nlines")
    check(command("jobs"), USAGE, "THALWEG_TOKEN: a token is one line of printable ASCII characters")


def test_a_busy_port_and_a_busy_folder(server: Server, command: Command) -> None:
    message = f"cannot listen at {server.address}: this machine does not have the address, or the port is in use."
    check(command("serve", "--address", server.address, "--data", "other"), FAILURE, message)
    assert not Path("other").exists()
    folder = server.config.data
    message = f"the data folder {folder} is in use by another server; choose another with --data"
    check(command("serve", "--address", "127.0.0.1:0", "--data", folder), FAILURE, message)


def test_another_program_answers(command: Command) -> None:
    """As an HTTP server would, to what it cannot read."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                    connection.recv(1 << 16)

        Thread(target=answer, daemon=True).start()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        message = f"cannot reach a Thalweg server at {address}: a program that is not a Thalweg server answers there"
        check(command("jobs", "--server", address), FAILURE, message)


def test_a_folder_that_will_not_do(command: Command) -> None:
    Path("file").touch()
    check(command("serve", "--address", "127.0.0.1:0", "--data", "file/below"), FAILURE, "cannot use the data folder ")
    check(command("train", "xor", "--data", "file/below"), FAILURE, "cannot use the data folder file/below: ")


@pytest.mark.parametrize("arguments", [["train", "xor"], ["fleet"]], ids=["train", "fleet"])
def test_ray_is_not_installed(arguments: list[str], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    check(command(*arguments), FAILURE, "Ray is not installed: pip install 'thalweg[workers]'")


@pytest.mark.parametrize(
    ("arguments", "missing", "message"),
    [
        (["plot", "gate"], "matplotlib.figure", "matplotlib is not installed (matplotlib.figure is missing)"),
        (["jobs"], "grpc_health.v1", "the server is not installed (grpc_health.v1 is missing)"),
    ],
    ids=["matplotlib", "grpc_health"],
)
def test_an_extra_is_not_installed(
    arguments: list[str], missing: str, message: str, cluster: Cluster, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a process that has imported none of it yet.
    for name in list(sys.modules):
        if name.startswith(("thalweg.server", "thalweg.workers")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    server = ["--server", cluster.address] if "gate" in arguments else []
    check(command(*arguments, *server), FAILURE, f"{message}: pip install 'thalweg[")


def test_a_layer_that_needs_scipy_says_so(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    message = "model.layers[1].gelu: needs SciPy: pip install 'thalweg[workers]'"
    # Nothing is trained by it: the error function of the C library does as well.
    assert command("gradcheck", "xor", "--set", "model.layers[1].gelu={}").code == 0
    check(command("train", "xor", "--set", "model.layers[1].gelu={}"), USAGE, message)


def test_a_bug_is_told_as_one(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: object) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("thalweg.client.cli.models.gradcheck.load_job", break_down)
    printed = command("gradcheck", "xor")
    assert printed.code == FAILURE
    assert printed.err.splitlines() == [
        "thalweg: unexpected ZeroDivisionError: by nothing",
        "thalweg: this is a bug; set THALWEG_TRACEBACK=1 to see where",
    ]
    monkeypatch.setenv("THALWEG_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        command("gradcheck", "xor")


def test_the_process_ends_with_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in ((["--version"], 0), (["frobnicate"], 2), ([], 2)):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == code
    assert "Usage: thalweg" in capsys.readouterr().out


def test_ctrl_c_before_anything_was_begun(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("thalweg.client.cli.models.gradcheck.load_job", interrupted)
    assert command("gradcheck", "xor") == (130, "", "")


def process(*arguments: object, stdout: int = subprocess.PIPE, before: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own, whose stderr gRPC writes to as well."""
    program = [*before, sys.executable, "-c", "from thalweg.command import main; main()"]
    return subprocess.run([*program, *map(str, arguments)], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


def test_a_reader_that_has_seen_enough_is_no_mistake() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    finished = process("--version", stdout=writer)
    os.close(writer)
    assert (finished.returncode, finished.stderr) == (1, "")


def test_nothing_but_the_line_is_on_stderr(server: Server) -> None:
    finished = process("serve", "--address", server.address, "--data", "other")
    check(Printed(finished.returncode, finished.stdout, finished.stderr), FAILURE, f"cannot listen at {server.address}")
    finished = process("jobs", "--server", NOWHERE)
    check(Printed(finished.returncode, finished.stdout, finished.stderr), FAILURE, f"cannot reach a Thalweg server at {NOWHERE}")

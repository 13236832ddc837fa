"""Job files: packaged jobs, TOML files, dictionaries and specifications, and the errors where they are wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from thalweg.client import ThalwegError, load_job, packaged_jobs
from thalweg.client.errors import JobFileError
from thalweg.server import validation
from thalweg.v1 import job_pb2

GOOD: dict[str, Any] = {
    "model": {"layers": [{"dense": {"units": 1}}, {"sigmoid": {}}], "loss": "binary_cross_entropy"},
    "data": {"builtin": "xor"},
    "optimizer": {"sgd": {}},
}
TOML = """
[model]
layers = [{ dense = { units = 1 } }]
loss = "mean_squared_error"
[data]
npz = "points.npz"
[optimizer]
sgd = {}
"""


def told(job: Any, settings: Any = ()) -> str:
    with pytest.raises(ThalwegError) as caught:
        load_job(job, settings)
    assert caught.value.reason == "INVALID_ARGUMENT"
    return str(caught.value)


class Somewhere:
    """A path that is neither a text nor a `Path`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return self._path


@pytest.mark.parametrize("kind", [str, Path, Somewhere])
def test_a_path_is_a_path(kind: Any, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(TOML)
    np.savez(tmp_path / "points.npz", x=[[1]], y=[1])
    save_file({}, tmp_path / "w.safetensors")
    assert load_job(kind(str(tmp_path / "job.toml"))).data == tmp_path / "points.npz"
    found = load_job(GOOD | {"data": {"csv": kind(str(tmp_path / "points.npz"))}})
    assert (found.data, found.spec.data.csv) == (tmp_path / "points.npz", str(tmp_path / "points.npz"))
    settings = {"data.npz": kind(str(tmp_path / "points.npz")), "model.initial.file": kind(str(tmp_path / "w.safetensors"))}
    found = load_job(GOOD, settings)
    assert (found.data, found.initial) == (tmp_path / "points.npz", tmp_path / "w.safetensors")


def test_a_job_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    np.savez(tmp_path / "points.npz", x=[[1]], y=[1])
    (tmp_path / "job.toml").write_text("\ufeff" + TOML, encoding="utf-8")
    assert load_job(tmp_path / "job.toml").spec.data.npz == "points.npz"
    (tmp_path / "job.toml").write_text("\ufeffname = 'x'\nsed = 3\n", encoding="utf-8")
    assert told(tmp_path / "job.toml").startswith(f"{tmp_path}/job.toml: sed: unknown; did you mean seed?")


def test_the_packaged_jobs_are_those_that_the_help_names() -> None:
    assert packaged_jobs() == ["and", "digits", "nand", "or", "xor"]


@pytest.mark.parametrize("name", packaged_jobs())
def test_a_packaged_job_is_one_that_a_server_takes(name: str) -> None:
    loaded = load_job(name)
    assert loaded.data is None
    assert validation.complete(loaded.spec).name == name


def test_a_dictionary_is_a_job() -> None:
    spec = load_job({**GOOD, "seed": 2**40, "training": {"epochs": 0}}).spec
    assert (spec.seed, spec.training.epochs, spec.data.builtin) == (2**40, 0, "xor")
    assert spec.training.HasField("epochs")
    assert not spec.training.HasField("batch_size")


def test_names_may_be_written_as_protobufs_json_writes_them() -> None:
    assert load_job({**GOOD, "training": {"batchSize": 3}}).spec.training.batch_size == 3


@pytest.mark.parametrize("name", packaged_jobs())
def test_a_specification_comes_back_as_it_was(name: str) -> None:
    spec = validation.complete(load_job(name).spec)
    loaded = load_job(spec)
    assert loaded.spec == spec
    assert loaded.spec is not spec


def test_settings_are_laid_over_a_specification() -> None:
    spec = load_job("xor").spec
    assert load_job(spec, ["seed=8"]).spec.seed == 8
    assert spec.seed == 7


def test_a_file_is_a_job_and_its_data_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "mine.toml").write_text(TOML)
    (tmp_path / "jobs" / "points.npz").touch()
    assert load_job("jobs/mine.toml").data == Path("jobs/points.npz")
    assert load_job(tmp_path / "jobs" / "mine.toml").data == tmp_path / "jobs" / "points.npz"


@pytest.mark.parametrize(
    "source", [{"csv": "https://host/a.csv"}, {"parquet": "file:///a/"}, {"npy": {"x": "s3://b/x.npy", "y": "s3://b/y.npy"}}]
)
def test_data_at_a_url_is_not_the_clients(source: dict[str, Any]) -> None:
    loaded = load_job({"data": source})
    assert (list(loaded.uploads()), loaded.spec.data.sha256) == ([], "")


def test_a_folder_is_its_files_of_the_source_sorted(tmp_path: Path) -> None:
    names = ["b.parquet", "a/z.PARQ", "a/x=1/y.parquet", "notes.txt", ".hidden.parquet", "_tmp/c.parquet", "a/_delta.parquet"]
    for name in names:
        path = tmp_path / "jobs" / "trips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    loaded = load_job(GOOD | {"data": {"parquet": str(tmp_path / "jobs" / "trips")}})
    assert list(loaded.parts) == ["a/x=1/y.parquet", "a/z.PARQ", "b.parquet"]
    assert loaded.parts["b.parquet"] == tmp_path / "jobs" / "trips" / "b.parquet"
    assert (loaded.data, list(loaded.uploads())) == (None, [("data.parquet", loaded.spec.data, loaded.parts)])
    assert load_job(loaded.spec, {"data.parquet": str(tmp_path / "jobs" / "trips" / "b.parquet")}).parts == {}


def test_arrays_in_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    for name in ("jobs/x.npy", "jobs/y.npy", "z.npy"):
        (tmp_path / name).touch()
    text = TOML.replace('npz = "points.npz"', 'npy = { x = "x.npy", y = "y.npy" }')
    (tmp_path / "jobs" / "mine.toml").write_text(text)
    loaded = load_job("jobs/mine.toml")
    assert (loaded.data, loaded.parts) == (None, {"x": Path("jobs/x.npy"), "y": Path("jobs/y.npy")})
    # A path in a setting is relative to the current folder.
    assert load_job("jobs/mine.toml", {"data.npy.x": "z.npy"}).parts == {"x": Path("z.npy"), "y": Path("jobs/y.npy")}
    (tmp_path / "jobs" / "mine.toml").write_text(text.replace("y.npy", "n.npy"))
    assert told("jobs/mine.toml") == "data.npy.y: there is no file jobs/n.npy"


def test_a_folder_without_files_of_the_source_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    with pytest.raises(ThalwegError) as caught:
        load_job(GOOD | {"data": {"parquet": str(tmp_path)}})
    problem = f"there is no file below {tmp_path} whose name ends in .parquet or .parq"
    assert str(caught.value) == f"data.parquet: {problem}"


@pytest.mark.parametrize("setting", ["data.npz=mine.npz", 'data={ npz = "mine.npz" }'])
def test_data_in_a_setting_lies_in_the_current_folder(setting: str, tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "mine.toml").write_text(TOML)
    (tmp_path / "mine.npz").touch()
    assert load_job("jobs/mine.toml", [setting]).data == Path("mine.npz")


def test_a_home_may_be_written_as_a_tilde(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine.toml").write_text(TOML)
    (tmp_path / "home" / "points.npz").touch()
    assert load_job("~/mine.toml").data == tmp_path / "home" / "points.npz"
    assert load_job("~/mine.toml", {"data.npz": "~/points.npz"}).data == tmp_path / "home" / "points.npz"


def test_data_that_was_uploaded_before_needs_no_file(tmp_path: Path) -> None:
    spec = load_job({**GOOD, "data": {"npz": "gone.npz", "sha256": "0" * 64}})
    assert spec.data is None
    (tmp_path / "new.npz").touch()
    again = load_job(spec.spec, {"data.npz": "new.npz"})
    assert again.spec.data.sha256 == ""
    assert again.data == Path("new.npz")


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("digit", "digit: there is no such file, and no packaged job of this name; did you mean digits? (packaged jobs: and, "),
        ("quux.toml", "quux.toml: there is no such file, and no packaged job of this name (packaged jobs: and, "),
        ("~nobody-at-all/job.toml", "~nobody-at-all/job.toml: there is no such file"),
        (".", "cannot read .: Is a directory"),
        ("a\0b", "embedded null byte"),
        ({**GOOD, "data": {"npz": "nowhere/a.npz"}}, "data.npz: there is no file nowhere/a.npz"),
        ({**GOOD, "data": {"csv": "~nobody-at-all/a.csv"}}, "data.csv: there is no file ~nobody-at-all/a.csv"),
        ({**GOOD, "data": {"npz": "."}}, "data.npz: . is a folder; give the path of a file"),
    ],
)
def test_what_is_not_there_is_told(job: Any, message: str) -> None:
    assert message in told(job)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[model]\nlayers = [}\n", "job.toml, line 2, column 11: Invalid value"),
        (b'name = "a"\nname = "b"\n', "job.toml, line 2, column 11: Cannot overwrite a value"),
        (b"[data", "job.toml: Expected ']' at the end of a table declaration (at end of document)"),
        (b'name = "\xff"', "job.toml: is not UTF-8 text: line 1 has the byte 0xff; save it as UTF-8"),
        ('name = "x"\n'.encode("utf-16"), "job.toml: is UTF-16 text; save it as UTF-8"),
        (b"seed = " + b"9" * 5000, "job.toml: Exceeds the limit"),
    ],
)
def test_what_is_no_toml_is_told_with_its_place(text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_bytes(text)
    assert told("job.toml").startswith(message.removesuffix(" (at end of document)"))


LAYER = "dense, relu, sigmoid, tanh, softmax, gelu, dropout, flatten, sequence"
WRONG: list[tuple[dict[Any, Any], str]] = [
    ({"modle": {}}, "modle: unknown; did you mean model? (one of name, seed, model, data, training, optimizer, priority, code)"),
    ({"epochs": 5}, "epochs: unknown; did you mean training.epochs?"),
    ({"model": {"layers": [{"dnse": {}}]}}, f"model.layers[0].dnse: unknown; did you mean dense? (one of {LAYER})"),
    ({"model": {"layers": [{"relu": {"slope": 1}}]}}, "model.layers[0].relu.slope: unknown (it has no settings)"),
    ({"model": {"layers": {}}}, "model.layers: a table is not a list"),
    ({"model": {"layers": ["relu"]}}, "model.layers[0]: 'relu' is not a table; write { relu = {} }"),
    ({"model": {"layers": ["conv"]}}, f"model.layers[0]: 'conv' is not a table (one of {LAYER})"),
    ({"model": 3}, "model: 3 is not a table"),
    ({"name": 3}, "name: 3 is not a string"),
    ({"name": "\udcff"}, r"name: '\udcff' is not a string"),
    ({"seed": 1.5}, "seed: 1.5 is not a whole number"),
    ({"seed": True}, "seed: true is not a whole number"),
    ({"seed": float("nan")}, "seed: nan is not a whole number"),
    ({"seed": 2**63}, f"seed: {2**63} is not allowed; it must be at most {2**63 - 1}"),
    ({"training": {"epochs": 2**32}}, f"training.epochs: {2**32} is not allowed; it must be at most 10000000"),
    ({"training": {"workers": -1}}, "training.workers: -1 is not allowed; it must be at least 1"),
    ({"data": {"builtin": "xor", "csv": "a.csv"}}, "data: builtin and csv are alternatives; give one of them"),
    ({"data": {"standardize": 1}}, "data.standardize: 1 is not true or false"),
    ({"optimizer": {"adam": {"learning_rate": "fast"}}}, "optimizer.adam.learning_rate: 'fast' is not a number"),
    ({"optimizer": {"adam": {"learning_rate": float("inf")}}}, "optimizer.adam.learning_rate: inf is not a finite number"),
    ({"optimizer": {"adam": {"betas": 0.9}}}, "optimizer.adam.betas: 0.9 is not a list"),
    ({"optimizer": {"adam": {"betas": [0.9, []]}}}, "optimizer.adam.betas[1]: a list is not a number"),
    ({"optimizer": {"adan": {}}}, "optimizer.adan: unknown; did you mean adam?"),
    ({3: 4}, "3: unknown"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_wrong_field_is_told_with_its_path(changes: dict[Any, Any], message: str) -> None:
    assert told({**GOOD, **changes}).startswith(message)


def test_all_faults_of_a_file_are_told_at_once_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('sed = 1\nname = 2\n[training]\nepochs = "many"\n')
    with pytest.raises(JobFileError) as caught:
        load_job("job.toml")
    assert [violation.field for violation in caught.value.violations] == ["sed", "name", "training.epochs"]
    assert str(caught.value).splitlines()[1:] == [
        "job.toml: name: 2 is not a string",
        "job.toml: training.epochs: 'many' is not a whole number",
    ]


def test_a_specification_that_is_not_finite_is_told() -> None:
    spec = load_job("xor").spec
    spec.optimizer.adam.learning_rate = float("nan")
    assert told(spec) == "optimizer.adam.learning_rate: nan is not a finite number"


def test_an_empty_specification_is_the_servers_to_refuse() -> None:
    assert load_job(job_pb2.JobSpec()).spec == load_job({}).spec == job_pb2.JobSpec()


def weights(path: Path) -> Path:
    save_file({"0.weight": np.zeros((1, 2), np.float32)}, path)
    return path


def test_parameters_to_start_from_lie_beside_the_job_file(tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / "points.npz").touch()
    weights(folder / "x.safetensors")
    (folder / "mine.toml").write_text(TOML.replace("[model]", '[model]\ninitial = { file = "x.safetensors" }'))
    loaded = load_job(folder / "mine.toml")
    assert loaded.initial == folder / "x.safetensors"
    assert [upload.given.name for upload in loaded.uploads() if isinstance(upload.given, Path)] == ["points.npz", "x.safetensors"]
    weights(tmp_path / "x.safetensors")
    for setting in ("model.initial.file=x.safetensors", 'model.initial={ file = "x.safetensors" }'):
        loaded = load_job(folder / "mine.toml", [setting])
        assert (loaded.data, loaded.initial) == (folder / "points.npz", Path("x.safetensors"))


def test_parameters_of_a_job_need_no_file() -> None:
    loaded = load_job("xor", {"model.initial.job": "xor-1"})
    assert loaded.spec.model.initial.job == "xor-1"
    assert loaded.initial is None
    assert list(loaded.uploads()) == []
    loaded.spec.model.initial.sha256 = "0" * 64
    assert load_job(loaded.spec).spec.model.initial == job_pb2.Initial(job="xor-1")


def test_parameters_that_were_uploaded_before_need_no_file() -> None:
    model = {**GOOD["model"], "initial": {"file": "gone.safetensors", "sha256": "0" * 64}}
    loaded = load_job({**GOOD, "model": model})
    assert loaded.initial is None
    weights(Path("new.safetensors"))
    again = load_job(loaded.spec, {"model.initial.file": "new.safetensors"})
    assert (again.initial, again.spec.model.initial.sha256) == (Path("new.safetensors"), "")
    assert load_job(loaded.spec, {"model.initial.job": "xor-1"}).spec.model.initial == job_pb2.Initial(job="xor-1")


def test_parameters_that_cannot_be_read_are_told() -> None:
    setting = {"model.initial.file": "x.safetensors"}
    assert told("xor", setting) == "model.initial.file: there is no file x.safetensors"
    Path("x.safetensors").write_bytes(b"a picture")
    assert told("xor", setting).startswith("model.initial.file: x.safetensors is not a safetensors file: ")
    assert told("xor", {"model.initial": {"job": "a", "file": "b"}}).startswith("model.initial: job and file are alternatives")

"""The documentation says what is so."""

import copy
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.client.helpers import fleet_of_threads
from tests.end_to_end.cluster import running_server
from thalweg import client
from thalweg.client import Client
from thalweg.client.jobfile import load_job
from thalweg.contract import rules
from thalweg.learning import data
from thalweg.server import validation
from thalweg.v1 import job_pb2

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("workers/**/README.md")),
    ROOT / "examples/README.md",
]


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def script(name: str) -> ModuleType:
    """A script that makes a page, or a part of it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_on_security_has_the_role_table() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert "| `CancelJob` |  | own |" in page
    assert script("make_roles").page(page) == page, "run docs/make_roles.py"


def test_the_reference_of_jobs_is_the_contracts() -> None:
    page = (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8")
    assert script("make_reference").reference() == page, "run docs/make_reference.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_points_to_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.strip()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", re.sub("`[^`]*`", "", text)):
        assert (page.parent / target).exists(), target
    for named in re.findall(r"`((?:tests|server|workers|client|proto|docs)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / named).exists(), named
    for heading in re.findall(r"\]\(#([^)]+)", text):
        assert heading in [title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]


def test_the_readmes_job_is_a_job(tmp_path: Path) -> None:
    (job,) = blocks(ROOT / "README.md", "toml")
    document = tomllib.loads(job)
    (tmp_path / document["data"]["csv"]).write_text("a,b\n1,2\n")
    (tmp_path / "job.toml").write_text(job)
    spec = load_job(tmp_path / "job.toml").spec
    spec.data.sha256 = "0" * 64
    assert validation.complete(spec).optimizer.adam.learning_rate == 0.001


def jobs_on(page: str) -> Iterator[job_pb2.JobSpec]:
    """The packaged job `digits` with the settings that each block of a page states."""
    for block in blocks(ROOT / "docs" / page, "toml"):
        settings = {f"{table}.{key}": value for table, values in tomllib.loads(block).items() for key, value in values.items()}
        yield validation.complete(load_job("digits", settings).spec)


def test_the_jobs_of_the_page_on_synchrony_are_jobs() -> None:
    policies = [spec.training.synchrony.WhichOneof("policy") for spec in jobs_on("synchrony.md")]
    assert policies == rules.alternatives(job_pb2.Synchrony, "policy")


def test_the_jobs_of_the_page_on_codecs_are_jobs() -> None:
    kinds = [spec.training.codec.WhichOneof("kind") for spec in jobs_on("codecs.md")]
    assert kinds == [kind for kind in rules.alternatives(job_pb2.Codec, "kind") if kind != "float16"]


def test_the_jobs_of_the_page_on_data_are_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other-hospital.csv").touch()
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    (tmp_path / "pets" / "cat" / "1.jpg").touch()
    found = []
    for block in blocks(ROOT / "docs" / "data.md", "toml"):
        settings = {"data": tomllib.loads(block)["data"] | {"sha256": "0" * 64}}
        spec = load_job({"model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"}} | settings).spec
        spec.optimizer.SetInParent()
        spec.optimizer.adam.SetInParent()
        if spec.data.test.file:
            spec.data.test.sha256 = "1" * 64
        found.append(validation.complete(spec).data)
    written, prepared, images, held_out = found
    assert (written.delimiter, written.decimal, written.columns["PLZ"].type) == ("semicolon", "comma", "text")
    assert prepared.columns["zip"].buckets == 64
    assert (images.images, images.validation.stratify) == ("pets/", "y")
    assert (held_out.validation.group, held_out.test.file) == ("patient", "other-hospital.csv")


def test_the_programs_of_the_page_on_data_run(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with running_server(tmp_path / "server") as server, fleet_of_threads(server), Client(server.address) as client:
        for program in blocks(ROOT / "docs" / "data.md", "python"):
            names: dict[str, Any] = {"client": client}
            exec(compile(program, "data.md", "exec"), names)
    assert names["prediction"].labels.tolist() == ["lily", "rose"]


@pytest.mark.parametrize("standardize", [False, True])
def test_the_readmes_model_in_pytorch_is_the_jobs(standardize: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    with running_server(tmp_path / "server") as server, fleet_of_threads(server), Client(server.address) as client:
        job = client.submit("digits", {"training.epochs": 2, "data.standardize": standardize}, id="digits-1")
        job.wait()
        job.save("digits-1.safetensors")
        x, y, *_ = data.read(job.spec.data, Path)
        expected = job.predict(x)
    np.save("x.npy", x)
    names: dict[str, Any] = {}
    exec(compile(blocks(ROOT / "README.md", "python")[1], "README.md", "exec"), names)
    outputs = np.asarray(names["outputs"])
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-4)
    assert np.mean(outputs.argmax(1) == y) > 0.9
    # On samples that are not prepared, the model is another one.
    if standardize:
        with torch.no_grad():
            unprepared = names["model"](torch.from_numpy(x.astype(np.float32)))
        assert np.abs(np.asarray(unprepared) - expected).max() > 1


@pytest.mark.ray
def test_the_readmes_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    program = blocks(ROOT / "README.md", "python")[0]
    names: dict[str, object] = {}
    exec(compile(program, "README.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in lines[:10]] == list(range(1, 11))
    assert float(lines[9].split()[2]) > 0.95
    assert re.fullmatch("[0-9a-f]{64}", lines[10])
    assert getattr(names["outputs"], "shape", None) == (1, 10)


def test_the_loop_of_the_page_on_models_is_its_job(tmp_path: Path) -> None:
    """With 100 samples, which are one batch."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("cloudpickle")
    loop, job = (block for block in blocks(ROOT / "docs" / "models.md", "python") if "net" in block and "import" not in block)
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(1))
    y = x[:, :3].argmax(1)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    start = copy.deepcopy(net.state_dict())
    other = copy.deepcopy(net)
    exec(compile(loop, "models.md", "exec"), {"torch": torch, "net": net, "x": x, "y": y})
    with (
        running_server(tmp_path, allow_code=True) as server,
        fleet_of_threads(server, slots=1, allow_code=True),
        Client(server.address) as client,
    ):
        exec(compile(job, "models.md", "exec"), {"client": client, "net": other, "x": x, "y": y})
    found = other.state_dict()
    for name, tensor in net.state_dict().items():
        np.testing.assert_allclose(found[name], tensor, rtol=1e-4, atol=1e-5, err_msg=name)
        assert (tensor - start[name]).abs().max() > 0.01


def test_the_page_on_python_names_all_that_is_public() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", page))
    methods = {name for kind in (client.Client, client.Job) for name in vars(kind) if not name.startswith("_")}
    assert methods | set(client.__all__) <= words | {"address", "message"}


@pytest.mark.ray
def test_the_page_on_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    try:
        for block in blocks(ROOT / "docs" / "python.md", "python"):
            exec(compile(block, "python.md", "exec"), names)
    finally:
        names["cluster"].close()
    printed = capsys.readouterr().out.splitlines()
    lines = [line for line in printed if not line.endswith(" bytes")]
    first, *_, last = (line.split() for line in printed if line.endswith(" bytes"))
    assert (first[0], last[0]) == ("0", last[2])
    assert lines[0].startswith("INVALID_ARGUMENT training.epochs: ")
    state, epochs, _, accuracy, digest = lines[1].split()
    assert (state, epochs, len(digest)) == ("SUCCEEDED", "20", 64)
    assert names["same"].last_result().weights_sha256 == digest
    assert float(accuracy) > 0.8
    assert [line.split()[0] for line in lines[2:6]] == ["25", "50", "75", "100"]
    assert lines[6] == "[('long', 'CANCELLED'), ('my-xor', 'SUCCEEDED'), ('batches', 'SUCCEEDED'), ('quadrants-1', 'SUCCEEDED')]"
    assert names["weights"]["2.weight"].shape == (2, 16)
    assert names["outputs"].shape == (5, 2)
    assert set(names["classes"]) <= {0, 1}
    assert (tmp_path / "quadrants.safetensors").is_file()
    assert (tmp_path / "slice.png").is_file()

"""Functions that JAX differentiates: the threads that it has, and the mistakes that they may hold."""

import re
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from tests.learning.kinds.cases import samples
from tests.learning.modules import importable
from thalweg.learning import registry
from thalweg.learning.data import Arrays
from thalweg.learning.errors import MistakeError, NodeError
from thalweg.learning.objective import Objective, conversions
from thalweg.v1 import job_pb2
from thalweg.workers.premises import premises

jax = pytest.importorskip("jax", reason="the kind jax needs the extra jax")
from jax import numpy as jnp  # noqa: E402 - an extra

from thalweg.learning.jax_function import settled  # noqa: E402 - imports jax

HERE = "functions_of_test_jax_function"
SAMPLES = samples(6)


@pytest.fixture(autouse=True)
def functions() -> Iterator[ModuleType]:
    """A module for entry points; and the settings that workers have."""
    with importable(HERE) as module, settled(1):
        yield module


def objective_of(made: Any, dtype: str = "float32") -> Objective:
    vars(sys.modules[HERE])["make"] = lambda: made
    model = {"jax": {"entrypoint": f"{HERE}:make", "arguments": "{}"}, "dtype": dtype}
    spec = json_format.ParseDict({"model": model, "training": {"threads_per_worker": 1}}, job_pb2.JobSpec())
    return registry.objective(spec, Arrays(SAMPLES).schema)


def start(objective: Objective) -> Any:
    at = np.empty(objective.size, objective.dtype)
    objective.initialize(at)
    return at


def init(key: Any) -> Any:
    return {"layers": [{"w": jnp.ones((4, 3)), "b": jnp.zeros(3)}], "scale": 2.0}


def loss(parameters: Any, x: Any, y: Any, key: Any) -> Any:
    layer = parameters["layers"][0]
    return jnp.square(x @ layer["w"] + layer["b"]).sum(1) * parameters["scale"]


class Object:
    init, loss = staticmethod(init), staticmethod(loss)


@pytest.mark.parametrize("made", [(init, loss), (init, loss, None), Object(), Object])
def test_functions_come_as_a_tuple_or_as_an_object(made: Any) -> None:
    objective = objective_of(made)
    names = {segment.name: segment.shape for segment in objective.segments}
    assert names == {"layers.0.b": (3,), "layers.0.w": (4, 3), "scale": ()}
    assert start(objective)[-1] == 2
    objective.check(Arrays(SAMPLES))
    with pytest.raises(MistakeError, match=r"^model\.jax: there is no function predict\(parameters, x\)"):
        objective.predict(start(objective), SAMPLES)


def test_a_tree_may_be_one_array() -> None:
    objective = objective_of((lambda key: jnp.ones(4), lambda parameters, x, y, key: jnp.square(x @ parameters)))
    assert [segment.name for segment in objective.segments] == ["parameters"]
    out = np.empty(4, np.float32)
    objective.gradient(start(objective), SAMPLES, 6, (0, 0), out)
    wanted = 2 * SAMPLES["x"].T @ SAMPLES["x"].sum(1) / 6
    np.testing.assert_allclose(out, wanted, rtol=1e-5)


def test_it_has_the_bits_of_jax_alone() -> None:
    objective = objective_of((init, loss))
    at, out = start(objective), np.empty(objective.size, np.float32)
    objective.gradient(at, SAMPLES, 1, (0, 0), out)
    wanted = jax.jit(jax.grad(lambda parameters, x: loss(parameters, x, None, None).sum()))(init(None), SAMPLES["x"])
    assert out.tobytes() == b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree_util.tree_leaves(wanted))


def test_double_precision_is_for_the_job_that_asks_for_it() -> None:
    dtypes = []

    def noting(parameters: Any, x: Any, y: Any, key: Any) -> Any:
        dtypes.append((parameters["scale"].dtype.name, x.dtype.name, jnp.arange(1.0).dtype.name))
        return loss(parameters, x, y, key)

    for dtype in ("float64", "float32"):
        objective = objective_of((init, noting), dtype)
        objective.measure(start(objective), SAMPLES)
        assert dtypes.pop() == (dtype, dtype, dtype)
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize(
    ("made", "dtype", "words"),
    [
        # JAX itself takes it for float32.
        (np.ones(3, np.float64), "float32", ""),
        (np.ones(3, np.float64), "float64", ""),
        (
            np.ones(3, np.float32),
            "float64",
            "w of type float32, which the job converts to float64; to train with float32",
        ),
        (jnp.ones(3, jnp.bfloat16), "float32", "w of type bfloat16, which the job converts to float32"),
    ],
)
def test_parameters_that_are_converted_are_named(made: Any, dtype: str, words: str) -> None:
    found = conversions(objective_of((lambda _: {"w": made}, loss), dtype))
    assert found.startswith(f"model.dtype: the code makes {words}" if words else "")
    assert bool(found) == bool(words)


def test_what_is_drawn_without_a_key_is_a_constant() -> None:
    """It is drawn when the function is traced, by whichever task comes first."""

    def drawing(parameters: Any, x: Any, y: Any, key: Any) -> Any:
        return loss(parameters, x, y, key) * np.random.random()

    found = []
    for order in (0, 1), (1, 0):
        objective = objective_of((init, drawing))
        sums = {microbatch: objective.measure(start(objective), SAMPLES, (0, microbatch)) for microbatch in order}
        found.append(sums)
    assert found[0] == found[1]


def test_threads_are_as_many_as_the_job_says() -> None:
    """XLA's threads have a name. In a process of their own: they are made once."""
    program = """
import sys
from pathlib import Path
from jax import numpy as jnp
from thalweg.learning.errors import NodeError
from thalweg.learning.jax_function import settled
number = int(sys.argv[1])
with settled(number):
    (jnp.ones((512, 512)) @ jnp.ones((512, 512))).block_until_ready()
names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
assert names.count("tf_XLAEigen") == number, names
with settled(number):
    pass
try:
    with settled(number + 1):
        pass
except NodeError as error:
    print(error)
"""
    for number in (1, 3):
        ended = subprocess.run([sys.executable, "-c", program, str(number)], capture_output=True, text=True, check=True)
        said = f"training.threads_per_worker: JAX computes with {number} threads in this process, which cannot be changed; "
        assert ended.stdout.startswith(said)


def test_other_threads_than_the_first_are_refused() -> None:
    with pytest.raises(NodeError, match=r"^training\.threads_per_worker: JAX computes with 1 threads"), settled(2):
        pass


def test_premises_name_what_bits_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    found = {premise.name: premise.value for premise in premises(objective_of((init, loss)).packages)}
    assert found["jax"] == jax.__version__
    assert found.keys() >= {"jaxlib", "processor's model"}
    assert found["XLA's flags"] == "--xla_cpu_enable_fast_math=true"


def _branching(parameters: Any, x: Any, y: Any, key: Any) -> Any:
    return x if x.sum() > 0 else y


MISTAKES: dict[str, tuple[Any, str]] = {
    "no functions": (3, "the entry point gave int, which has no function init(key)"),
    "no loss": ((init,), "the entry point gave tuple, which has no function loss(parameters, x, y, key)"),
    "nothing": ((lambda key: {}, loss), "init(key) gave no parameters"),
    "integers": ((lambda key: {"w": jnp.arange(3)}, loss), "init(key), for w, gave an array of type int32"),
    "functions": ((lambda key: {"w": init}, loss), "init(key), for w, gave function, not an array"),
    "NaN": ((lambda key: [jnp.array([jnp.nan])], loss), "init(key) gave values for 0 that are not finite"),
    "one name": ((lambda key: {"a.b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, loss), "by the name 'a.b'"),
    "a loss that cannot be traced": ((init, _branching), "TracerBoolConversionError"),
    "a loss of another shape": ((init, lambda p, x, y, key: x), "gave the shape (2, 4) for 2 samples"),
    "a loss of integers": ((init, lambda p, x, y, key: y), "loss(parameters, x, y, key) gave an array of type int"),
    "a loss that is nothing": ((init, lambda p, x, y, key: None), "loss(parameters, x, y, key) gave NoneType, not an array"),
    "predictions of another length": ((init, loss, lambda p, x: p["scale"]), "gave the shape () for 2 samples"),
    "a loss that needs a key": (
        (init, lambda p, x, y, key: loss(p, x, y, key) * jax.random.uniform(key)),
        "TypeError: ",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str) -> None:
    made, words = MISTAKES[mistake]
    with pytest.raises(MistakeError, match=rf"^model\.jax: .*{re.escape(words)}"):
        objective_of(made).check(Arrays(SAMPLES))


def test_a_mistake_is_told_with_the_line_of_the_code_alone() -> None:
    with pytest.raises(MistakeError) as caught:
        objective_of((init, _branching)).check(Arrays(SAMPLES))
    _, _, where = str(caught.value).partition(" (at ")
    assert re.fullmatch(r"tests/learning/test_jax_function\.py:\d+ in _branching: return x if x\.sum\(\) > 0 else y\)", where)

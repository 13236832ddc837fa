"""Settings: single values laid over a job, and never anything but a ThalwegError where they are wrong."""

import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.client import ThalwegError, load_job
from thalweg.client.jobfile import toml_of
from thalweg.v1 import job_pb2


def laid(*texts: str) -> job_pb2.JobSpec:
    return load_job("xor", texts).spec


def test_numbers_strings_and_truth_values() -> None:
    spec = laid(
        "training.epochs=5", "optimizer.adam.learning_rate = 1e-2", "model.loss=mean_squared_error", "data.standardize=true"
    )
    assert spec.training.epochs == 5
    assert spec.optimizer.adam.learning_rate == 0.01
    assert spec.model.loss == "mean_squared_error"
    assert spec.data.standardize


@pytest.mark.parametrize("text", ["7", "007", "1.50", "true", "1979-05-27", "[1]", "a b", "a=b", '"quoted"'])
def test_what_a_string_field_is_given_is_a_string(text: str) -> None:
    assert laid(f"data.target={text}").data.target == text.strip('"')


def test_a_whole_number_may_be_written_with_an_exponent() -> None:
    assert laid("training.epochs=1e3").training.epochs == 1000


def test_names_may_be_written_as_protobufs_json_writes_them() -> None:
    assert laid("training.batchSize=3", "training.batch_size=2").training.batch_size == 2


def test_an_alternative_takes_the_place_of_its_rival() -> None:
    spec = laid("optimizer.sgd.learning_rate=0.5")
    assert spec.optimizer.WhichOneof("kind") == "sgd"
    assert spec.optimizer.sgd.learning_rate == 0.5
    spec = laid("optimizer.sgd={}", "optimizer.adam.learning_rate=0.5")
    assert spec.optimizer.WhichOneof("kind") == "adam"
    assert spec.optimizer.adam.learning_rate == 0.5


def test_a_codec_is_written_as_every_alternative_is() -> None:
    assert laid("training.codec.bfloat16={}").training.codec.WhichOneof("kind") == "bfloat16"
    assert laid("training.codec.top_k.fraction=0.05").training.codec.top_k.fraction == 0.05
    assert laid("training.codec={ int8 = { block = 64 } }").training.codec.int8.block == 64
    with pytest.raises(ThalwegError, match=r"training.codec: 'int8' is not a table; write \{ int8 = \{\} \}"):
        laid("training.codec=int8")


def test_what_is_beside_an_alternative_stays() -> None:
    spec = laid("optimizer.schedule.cosine={}", "optimizer.sgd={}", "optimizer.schedule.step.step_size=3")
    assert spec.optimizer.WhichOneof("kind") == "sgd"
    assert spec.optimizer.schedule.WhichOneof("kind") == "step"


def test_layers_are_reached_by_their_index() -> None:
    spec = laid("model.layers[0].dense.units=3", "model.layers[1].relu={}")
    kinds = [layer.WhichOneof("kind") for layer in spec.model.layers]
    assert kinds == ["dense", "relu", "dense", "sigmoid"]
    assert spec.model.layers[0].dense.units == 3
    assert spec.model.layers[0].dense.initializer == "xavier_normal"


def test_items_and_whole_lists() -> None:
    spec = laid("optimizer.adam.betas=[0.5, 0.6]", "optimizer.adam.betas[1]=0.7", "model.layers=[{ tanh = {} }]")
    assert list(spec.optimizer.adam.betas) == [0.5, 0.7]
    assert len(spec.model.layers) == 1


def test_lists_of_strings() -> None:
    data = laid('data.missing_values=["unknown", "-"]', "data.missing_values[1]=7", "data.ignore=[]").data
    assert list(data.missing_values) == ["unknown", "7"]
    assert not data.ignore


def test_a_mapping_gives_values_as_they_are(tmp_path: Path) -> None:
    layers = [{"dense": {"units": 2}}, {"tanh": {}}]
    spec = load_job("xor", {"model.layers": layers, "model.layers[0].dense.units": 9, "name": "7"}).spec
    assert spec.model.layers[0].dense.units == 9
    assert spec.name == "7"
    assert layers == [{"dense": {"units": 2}}, {"tanh": {}}]


def test_the_packaged_job_is_not_changed() -> None:
    laid("seed=99")
    assert laid().seed == 7


WRONG = [
    (["training.epocs=5"], "training.epocs: unknown; did you mean epochs?"),
    (["epochs=5"], "epochs: unknown; did you mean training.epochs?"),
    (["optimizer.adm.learning_rate=1"], "optimizer.adm: unknown; did you mean adam?"),
    (["model.layers[0].dense.unit=1"], "model.layers[0].dense.unit: unknown; did you mean units?"),
    (["training.epochs=many"], "training.epochs: 'many' is not a whole number"),
    (["training.epochs=5.5"], "training.epochs: 5.5 is not a whole number"),
    (["training.epochs="], "training.epochs: '' is not a whole number"),
    (["optimizer.adam.learning_rate=nan"], "optimizer.adam.learning_rate: nan is not a finite number"),
    (["optimizer=adam"], "optimizer: 'adam' is not a table; write { adam = {} }"),
    (["training.epochs.x=5"], "training.epochs: is a single value, and has no x"),
    (["model.layers.dense=5"], "model.layers: is a list; write model.layers[0] for its first item"),
    (["model.layers[4].relu={}"], "model.layers[4]: no such item; there are 4, counted from 0"),
    (["optimizer.adam.betas[0]=1"], "optimizer.adam.betas[0]: no such item; the list is empty"),
    (["model.layers[0][0].relu={}"], "model.layers[0]: is not a list"),
    (["seed[0]=1"], "seed[0]: is not a list"),
    (["model[0].loss=x"], "model[0]: is not a list"),
    (["a b=1"], "a b: is not a path; write one as model.layers[0].dense.units"),
    (["seed..x=1"], "seed..x: is not a path"),
    ([f"model.layers[{'9' * 5000}]=1"], "model.layers[999"),
    (["training.epochs"], "'training.epochs' is not a setting; write KEY=VALUE, as in training.epochs=5"),
    (["=5"], "'=5' is not a setting"),
    (["name=\udcff"], r"name: '\udcff' is not a string"),
    ([f"seed={'9' * 5000}"], "seed: '99999"),
    # What the first one leaves, the second one cannot be laid over.
    (["model=5", "model.loss=x"], "model: 5 is not a table"),
    (["model.layers=5", "model.layers[0].dense.units=3"], "model.layers: 5 is not a list"),
    (["model.layers=[1]", "model.layers[0].dense.units=3"], "model.layers[0]: 1 is not a table"),
    (["optimizer.adam.betas=half", "optimizer.adam.betas[0]=1"], "optimizer.adam.betas: 'half' is not a list"),
]


@pytest.mark.parametrize(("texts", "message"), WRONG)
def test_a_wrong_setting_is_told_with_its_path(texts: list[str], message: str) -> None:
    with pytest.raises(ThalwegError) as caught:
        laid(*texts)
    assert caught.value.reason == "INVALID_ARGUMENT"
    assert str(caught.value).startswith(message)


def paths() -> st.SearchStrategy[str]:
    """Paths along the contract's fields, and past them."""
    names = {"x", ""}
    todo = [job_pb2.JobSpec.DESCRIPTOR]
    seen = set()
    while todo:
        descriptor = todo.pop()
        if descriptor.full_name not in seen:
            seen.add(descriptor.full_name)
            names |= {field.name for field in descriptor.fields}
            todo += [field.message_type for field in descriptor.fields if field.message_type]
    part = st.builds(
        str.__add__, st.sampled_from(sorted(names)), st.sampled_from(["", "", "", "[0]", "[1]", "[9]", "[0][0]", "["])
    )
    real = [
        "seed",
        "model",
        "model.layers",
        "model.layers[0]",
        "model.layers[1].tanh",
        "model.layers[0].dense.units",
        "data",
        "data.npz",
        "training.synchrony.bulk",
        "training.codec.top_k",
        "optimizer.adam.betas",
        "optimizer.adam.betas[1]",
        "optimizer.schedule.warmup.then",
    ]
    return st.sampled_from(real) | st.lists(part, min_size=1, max_size=4).map(".".join) | st.text(max_size=12)


VALUES = st.sampled_from(
    ["5", "-1", "nan", "1e999", "x", "", "[]", "[1]", "{}", "{ a = 1 }", "[{}]", "[{ relu = {} }]", "\udcff", "1\n2"]
)


@given(st.lists(st.tuples(paths(), VALUES | st.text(max_size=12)), max_size=5))
def test_no_text_raises_anything_but_a_thalweg_error(pairs: list[tuple[str, str]]) -> None:
    with suppress(ThalwegError):
        load_job("xor", [f"{path}={value}" for path, value in pairs])


PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=2) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dense", "relu", "layers", "loss", "adam", "betas", "then", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(paths(), PLAIN, max_size=4))
def test_no_value_raises_anything_but_a_thalweg_error(values: dict[str, Any]) -> None:
    with suppress(ThalwegError):
        load_job("xor", values)


@given(st.dictionaries(st.sampled_from(["name", "seed", "model", "data", "training", "optimizer", "x"]), PLAIN))
def test_no_dictionary_raises_anything_but_a_thalweg_error(document: dict[str, Any]) -> None:
    with suppress(ThalwegError):
        load_job(document)


def test_settings_of_columns_have_the_columns_names() -> None:
    spec = laid("data.columns.zip.type=text", "data.columns.price.prepare=log", "data.columns.price.buckets=8")
    assert {name: (column.type, column.prepare, column.buckets) for name, column in spec.data.columns.items()} == {
        "zip": ("text", "", 0),
        "price": ("", "log", 8),
    }
    assert load_job(tomllib.loads(toml_of(spec))).spec == spec
    again = load_job({"data": {"columns": {"a b": {"missing": "0"}}}}, {"data.columns.c": {"type": "time"}}).spec.data.columns
    assert (again["a b"].missing, again["c"].type) == ("0", "time")
    for text, told in (
        ("data.columns.zip.typ=text", "data.columns.zip.typ: unknown; did you mean type?"),
        ("data.columns.zip=text", "data.columns.zip: 'text' is not a table"),
        ("data.columns=3", "data.columns: 3 is not a table"),
        ("data.columns[0].type=text", "data.columns[0]: no such item"),
    ):
        with pytest.raises(ThalwegError) as caught:
            laid(text)
        assert told in str(caught.value)

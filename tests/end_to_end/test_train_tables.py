"""Training from tables of several files, as a user runs it."""

from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.command import thalweg
from tests.learning.parquets import write_folder
from thalweg.client import local

pytestmark = pytest.mark.ray

JOB = """
[model]
layers = [{ dense = { units = 8 } }, { relu = {} }, { dense = { units = 1 } }]
loss = "mean_squared_error"
[data]
parquet = "trips"
validation_fraction = 0.1
standardize = true
[training]
epochs = 2
batch_size = 100
microbatches = 4
[optimizer.adam]
"""


def test_a_folder_of_parquet_files_trains_to_equal_bits_on_one_two_or_three_workers(tmp_path: Path) -> None:
    write_folder(tmp_path / "jobs" / "trips")
    (tmp_path / "jobs" / "job.toml").write_text(JOB)
    job = tmp_path / "jobs" / "job.toml"
    with local(workers=3, data=tmp_path / "data") as client:
        jobs = [client.submit(job, {"training.workers": workers}) for workers in (1, 2, 3)]
        ended = [each.wait() for each in jobs]
    assert [result.steps for result in ended] == [2 * 27] * 3
    assert len({result.weights_sha256 for result in ended}) == 1


@pytest.mark.nightly
def test_the_command_trains_from_a_folder_of_parquet_files_and_predicts_from_it(tmp_path: Path) -> None:
    table = write_folder(tmp_path / "trips")
    (tmp_path / "job.toml").write_text(JOB)
    ended = thalweg(tmp_path, "train", "job.toml", "--json", "--set", "training.workers=1")
    assert ended.code == 0, ended.stderr
    assert (ended.answer["state"], ended.answer["steps"]) == ("SUCCEEDED", 2 * 27)
    predicted = thalweg(tmp_path, "predict", ended.answer["job"], "trips", "--json")
    assert predicted.code == 0, predicted.stderr
    errors = np.array(predicted.answer["outputs"])[:, 0] - table["y"].to_numpy()
    # A tenth of the rows were held out.
    loss = 0.9 * ended.answer["train_loss"] + 0.1 * ended.answer["validation"]["loss"]
    assert np.mean(errors**2) == pytest.approx(loss, rel=1e-3)

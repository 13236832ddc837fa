"""Training from tables of several files, as a user runs it."""

from pathlib import Path

import pytest

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

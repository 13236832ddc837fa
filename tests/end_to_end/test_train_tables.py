"""Training from tables of several files, as a user runs it."""

from pathlib import Path

import pytest

from tests.end_to_end.command import thalweg
from tests.learning.parquets import write_folder

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
    digests = set()
    for workers in (1, 2, 3):
        ended = thalweg(tmp_path, "train", "jobs/job.toml", "--json", "--set", f"training.workers={workers}")
        assert ended.code == 0, ended.stderr
        assert ended.answer["state"] == "SUCCEEDED"
        assert ended.answer["steps"] == 2 * 27
        digests.add(ended.answer["weights_sha256"])
    assert len(digests) == 1

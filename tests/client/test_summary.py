"""How `thalweg train` ends, and the JSON that machines read."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from thalweg.client import EpochEnded, Metrics, Result, ThalwegError, records
from thalweg.client.cli.display import JobView
from thalweg.client.cli.output import accuracy_of, ago, complain, exit_code, print_json, result_json, seconds_of, sparkline
from thalweg.client.cli.signals import InterruptedBySignalError
from thalweg.client.cli.training.course import Outcome
from thalweg.client.cli.training.summary import report
from thalweg.contract.errors import Violation, invalid
from thalweg.v1 import job_pb2

RESULT = Result("digits-1", "SUCCEEDED", 1200, 30, Metrics(0.01, 0.999), Metrics(0.05, 0.98), "ab" * 32, 4321.5, 75.0)
NOTHING = Result("digits-1", "CANCELLED", 0, 0, None, None, "", 0.0, 0.0)


def picture() -> JobView:
    shown = JobView()
    now = datetime.now(UTC)
    shown.epochs = [EpochEnded(n, now, n, n, 1 / n, Metrics(1 / n, 1 - 1 / n)) for n in (1, 2, 4)]
    return shown


def reported(outcome: Outcome, capsys: pytest.CaptureFixture[str], place: str = "") -> tuple[int, list[str], list[str]]:
    code = report(outcome, place, False)
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()


def json_of(outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    report(outcome, "", True)
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_the_json_has_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert json_of(Outcome(RESULT, "", Path("/w.safetensors")), capsys) == {
        "job": "digits-1",
        "state": "SUCCEEDED",
        "steps": 1200,
        "epochs": 30,
        "train_loss": 0.01,
        "train_accuracy": 0.999,
        "validation": {"loss": 0.05, "accuracy": 0.98},
        "weights": "/w.safetensors",
        "weights_sha256": "ab" * 32,
        "samples_per_second": 4321.5,
        "seconds": 75.0,
    }


def test_what_was_not_measured_is_absent(capsys: pytest.CaptureFixture[str]) -> None:
    regression = replace(RESULT, train=Metrics(0.01, None), validation=None)
    answer = json_of(Outcome(regression, "", Path("/w")), capsys)
    assert "train_accuracy" not in answer
    assert "validation" not in answer
    assert set(json_of(Outcome(NOTHING, ""), capsys)) == {
        "job", "state", "steps", "epochs", "samples_per_second", "seconds",
    }  # fmt: skip
    assert result_json(replace(RESULT, validation=Metrics(0.5, None)))["validation"] == {"loss": 0.5}


def test_machines_of_several_kinds_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    mixed = replace(RESULT, machine_kinds=2)
    assert json_of(Outcome(mixed, "", Path("/w")), capsys)["machine_kinds"] == 2
    _, out, _ = reported(Outcome(mixed, "", Path("/w")), capsys)
    assert [line for line in out if "machines" in line] == [
        "  machines    2 kinds: the bits of the result depend on which worker computed what"
    ]
    _, out, _ = reported(Outcome(replace(RESULT, machine_kinds=1), "", Path("/w")), capsys)
    assert not [line for line in out if "machines" in line]


def test_a_failure_has_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    failed = replace(NOTHING, state="FAILED")
    assert json_of(Outcome(failed, "the loss is nan"), capsys)["error"] == "the loss is nan"
    assert reported(Outcome(failed, "the loss is nan"), capsys) == (1, [], ["thalweg: job digits-1 failed: the loss is nan"])
    diverged = replace(RESULT, state="FAILED")
    code, out, err = reported(Outcome(diverged, "the loss is nan", Path("/w")), capsys)
    assert (code, out) == (1, [])
    assert err[1:] == ["thalweg: the last parameters are in /w"]


def test_people_read_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(RESULT, "", Path("/w.safetensors"), picture=picture())
    code, out, err = reported(outcome, capsys, " --server a:1")
    assert (code, err) == (0, [])
    assert out[0] == "digits-1 succeeded: 30 epochs, 1,200 steps in 75 s, 4,322 samples/s"
    assert out[1].split() == ["loss", "█▃▁", "1", "→", "0.25"]
    assert out[2].split() == ["accuracy", "▁▆█", "0.0%", "→", "75.0%"]
    assert out[3].split() == ["training", "loss", "0.01", "accuracy", "99.9", "%"]
    assert out[4].split() == ["validation", "loss", "0.05", "accuracy", "98.0", "%"]
    assert out[5].split() == ["weights", "/w.safetensors"]
    assert out[6].split() == ["sha256", "ab" * 32]
    assert out[7] == "Try next:"
    assert all("--server a:1" in line for line in out[8:])


def test_a_single_epoch_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = reported(Outcome(replace(RESULT, epochs=1, steps=1, samples_per_second=0), "", Path("/w")), capsys)
    assert code == 0
    assert out[0] == "digits-1 succeeded: 1 epoch, 1 step in 75 s"
    assert not any("→" in line for line in out)


def test_a_cancelled_job_tells_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    cancelled = replace(RESULT, state="CANCELLED", steps=1)
    assert reported(Outcome(cancelled, "", Path("/w")), capsys) == (
        1,
        [],
        [
            "thalweg: job digits-1 was cancelled after 1 step",
            "thalweg: the parameters so far are in /w",
            "thalweg: to resume: thalweg train --resume digits-1",
        ],
    )
    assert reported(Outcome(NOTHING, ""), capsys, " --data kept")[2][1:] == [
        "thalweg: no step was completed",
        "thalweg: to resume: thalweg train --resume digits-1 --data kept",
    ]


def test_an_interruption_gives_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    for number, code in ((2, 130), (15, 143)):
        outcome = Outcome(NOTHING, "", interruption=InterruptedBySignalError(number))
        assert reported(outcome, capsys) == (
            code,
            [],
            [
                "thalweg: job digits-1 was interrupted after 0 steps",
                "thalweg: no step was completed",
                "thalweg: to resume: thalweg train --resume digits-1",
            ],
        )


def test_an_interruption_says_how_far_the_job_was_seen_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(NOTHING, "", interruption=InterruptedBySignalError(2), picture=picture())
    outcome.picture.progress = records.progress(job_pb2.Progress(step=216, total_steps=1200))
    assert reported(outcome, capsys)[2][0] == "thalweg: job digits-1 was interrupted after 216 steps"


def test_a_job_that_went_on_or_ended_well_in_spite_of_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    interruption = InterruptedBySignalError(2)
    lines = reported(Outcome(replace(NOTHING, state="RUNNING"), "", interruption=interruption), capsys)[2]
    assert lines[-1] == "thalweg: to resume: thalweg train --resume digits-1"
    lines = reported(Outcome(RESULT, "", Path("/w"), interruption=interruption), capsys)[2]
    assert not any("--resume" in line for line in lines)


def test_weights_that_could_not_be_written_are_still_to_be_had(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(RESULT, "", None, ["cannot write /w: No space left on device"])
    code, _, err = reported(outcome, capsys, " --server a:1")
    assert code == 1
    assert err == [
        "thalweg: cannot write /w: No space left on device",
        "thalweg: the server keeps the weights: thalweg weights digits-1 --server a:1 -o FILE",
    ]


def test_numbers_that_json_cannot_hold_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [math.nan, 1.5, (math.inf,)], "b": "ü"})
    assert capsys.readouterr().out == '{"a": [null, 1.5, [null]], "b": "ü"}\n'


def test_each_line_of_a_problem_has_the_programs_name(capsys: pytest.CaptureFixture[str]) -> None:
    complain("one\ntwo")
    complain("")
    assert capsys.readouterr().err == "thalweg: one\nthalweg: two\nthalweg: \n"


def test_exit_codes_tell_mistakes_from_failures() -> None:
    assert exit_code(invalid(Violation("seed", "is odd"))) == 2
    assert exit_code(ThalwegError("JOB_NOT_FOUND", {"job": "a"})) == 1


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0123, "0.0123 s"), (9.876, "9.88 s"), (12.3, "12 s"), (119.4, "119 s"), (150, "2 min 30 s"), (7260, "2 h 1 min")],
)
def test_time_spans(seconds: float, words: str) -> None:
    assert seconds_of(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(-5, "0 s ago"), (59.9, "59 s ago"), (60, "1 min ago"), (7300, "2 h ago"), (200_000, "2 d ago")]
)
def test_times_gone_by(seconds: float, words: str) -> None:
    now = datetime.now(UTC)
    assert ago(now - timedelta(seconds=seconds), now) == words


def test_sparklines() -> None:
    assert sparkline([]) == sparkline([math.nan]) == ""
    assert sparkline([1, 1, math.inf]) == "▁▁"
    assert sparkline(range(8)) == "▁▂▃▄▅▆▇█"
    long = sparkline([float(value) for value in range(1000)])
    assert len(long) == 40
    assert (long[0], long[-1]) == ("▁", "█")


def test_accuracies() -> None:
    assert accuracy_of(None) == ""
    assert accuracy_of(Metrics(0.5, 0.12345)) == "12.3 %"
    assert accuracy_of(Metrics(0.5, None)) == "loss 0.5"

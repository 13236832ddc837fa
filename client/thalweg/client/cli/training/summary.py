"""The end of `thalweg train`: one JSON object, or a summary for people with further commands."""

from thalweg.client.cli.output import accuracy_of, complain, console, print_json, result_json, seconds_of, sparkline
from thalweg.client.cli.training.course import Outcome
from thalweg.client.records import ENDED, Metrics


def report(outcome: Outcome, place: str, json: bool) -> int:
    """Prints the result of a job, and returns the exit code. `place` has the options with which further commands find the job."""
    result = outcome.result
    if json:
        print_json(_json(outcome))
    elif result.state == "SUCCEEDED" and not outcome.interruption:
        _print_summary(outcome, place)
    for line in _complaints(outcome, place):
        complain(line)
    if outcome.interruption:
        return outcome.interruption.exit_code
    return 0 if result.state == "SUCCEEDED" and not outcome.problems else 1


def _json(outcome: Outcome) -> dict[str, object]:
    answer = result_json(outcome.result)
    if outcome.weights:
        answer["weights"] = str(outcome.weights)
    if outcome.error:
        answer["error"] = outcome.error
    return answer


def _complaints(outcome: Outcome, place: str) -> list[str]:
    """The message on stderr if the job did not succeed."""
    result = outcome.result
    lines = []
    if result.state == "FAILED":
        lines.append(f"job {result.job} failed: {outcome.error}")
    elif outcome.interruption:
        lines.append(f"job {result.job} was interrupted after {_steps(outcome)}")
    elif result.state == "CANCELLED":
        reason = f": {outcome.error}" if outcome.error else ""
        lines.append(f"job {result.job} was cancelled after {_steps(outcome)}{reason}")
    lines += outcome.problems
    if outcome.problems and result.weights_sha256:
        lines.append(f"the server keeps the weights: thalweg weights {result.job}{place} -o FILE")
    if result.state == "FAILED" and outcome.weights:
        lines.append(f"the last parameters are in {outcome.weights}")
    elif result.state == "CANCELLED" and outcome.weights:
        lines.append(f"the parameters so far are in {outcome.weights}")
    elif result.state == "CANCELLED" and not result.weights_sha256:
        lines.append("no step was completed")
    if result.state == "CANCELLED" or (outcome.interruption and result.state not in ENDED):
        lines.append(f"to resume: thalweg train --resume {result.job}{place}")
    return lines


def _steps(outcome: Outcome) -> str:
    # After an interruption, the server's last record may be older than the events.
    seen = outcome.picture.progress
    steps = max(outcome.result.steps, seen.step if seen else 0)
    return f"{steps:,} step{'' if steps == 1 else 's'}"


def _print_summary(outcome: Outcome, place: str) -> None:
    result, out = outcome.result, console()
    pace = f", {result.samples_per_second:,.0f} samples/s" if result.samples_per_second else ""
    epochs = f"{result.epochs:,} epoch{'' if result.epochs == 1 else 's'}"
    time = seconds_of(result.seconds)
    out.print(f"[bold green]{result.job}[/] succeeded: {epochs}, {_steps(outcome)} in {time}{pace}")
    _print_curves(outcome)
    for name, metrics in (("training", result.train), ("validation", result.validation), ("test", result.test)):
        if metrics:
            out.print(f"  [dim]{name:<11}[/] {_metrics(metrics)}")
    if result.machine_kinds > 1:
        bits = "the bits of the result depend on which worker computed what"
        out.print(f"  [dim]{'machines':<11}[/] {result.machine_kinds} kinds: {bits}", soft_wrap=True)
    if outcome.weights:
        out.print(f"  [dim]{'weights':<11}[/] {outcome.weights}", soft_wrap=True)
    out.print(f"  [dim]{'sha256':<11}[/] {result.weights_sha256}", soft_wrap=True)
    out.print("Try next:")
    for command, purpose in (
        (f"thalweg plot {result.job}{place}", "draws the learning curve"),
        (f"thalweg plot {result.job} --slice auto{place}", "the loss over one weight, and the way downhill"),
        (f"thalweg predict {result.job}{place}", "predicts its validation samples, or the samples of a file"),
    ):
        out.print(f"  [cyan]{command:<52}[/] [dim]{purpose}[/]", soft_wrap=True)


def _print_curves(outcome: Outcome) -> None:
    epochs, out = outcome.picture.epochs, console()
    if len(epochs) < 2:
        return
    losses = [epoch.train_loss for epoch in epochs]
    out.print(f"  [dim]{'loss':<11}[/] [cyan]{sparkline(losses)}[/] {losses[0]:.4g} → {losses[-1]:.4g}")
    accuracies = [e.validation.accuracy for e in epochs if e.validation and e.validation.accuracy is not None]
    if len(accuracies) > 1:
        ends = f"{accuracies[0]:.1%} → {accuracies[-1]:.1%}"
        out.print(f"  [dim]{'accuracy':<11}[/] [cyan]{sparkline(accuracies)}[/] {ends}")


def _metrics(metrics: Metrics) -> str:
    accuracy = "" if metrics.accuracy is None else f"   accuracy {accuracy_of(metrics)}"
    further = "".join(f"   {name} {value:.4g}" for name, value in metrics.values.items())
    return f"loss {metrics.loss:.4g}{accuracy}{further}"

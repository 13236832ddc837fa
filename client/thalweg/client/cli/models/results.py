"""Commands for the results of a job: weights, predictions, figures."""

import math
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from numpy.typing import NDArray

from thalweg.client.cli.models.predictions import as_json, check_name, write_outputs
from thalweg.client.cli.options import Data, JobId, Json, Server, TokenFile, connected, user_path, user_path_or_url
from thalweg.client.cli.output import complain, console, print_json
from thalweg.client.files import check_output
from thalweg.client.inputs import read_input
from thalweg.client.models import predict as predict_with
from thalweg.client.models import read_own_samples
from thalweg.client.plotting import PICTURES, learning_curve, loss_slice, parse_element, save_figure
from thalweg.client.prediction import Prediction
from thalweg.client.weights import check_weights_name
from thalweg.contract.addresses import is_url
from thalweg.contract.errors import Violation, invalid

_AUTO = "auto"


def weights(
    job: JobId,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", parser=user_path, metavar="FILE", help="The file to write.", show_default="JOB.safetensors"
        ),
    ] = None,
    server: Server = None,
    token_file: TokenFile = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Writes a job's weights to a safetensors file.

    For a running job, these are the weights after the last step. Tensors
    have the names and shapes of torch.nn.Sequential, whose load_state_dict
    accepts them.

    [bold]Examples[/]

    [cyan]thalweg weights digits-1 -o digits.safetensors[/]
    """
    path = (output or Path(f"{job}.safetensors")).absolute()
    check_output(path, "--output")
    if output:
        check_weights_name(output, "--output")
    with connected(server, token_file, data) as client:
        header = client.job(job).save(path)
    if json:
        print_json({"job": job, "weights": str(path), "weights_sha256": header.sha256, "version": header.version})
    else:
        console().print(f"{path}: the parameters after {header.version:,} steps", markup=False, soft_wrap=True)
        if header.preprocessing.mean:
            console().print("The model takes standardized samples; thalweg.client.prepare(FILE, x) returns them", soft_wrap=True)


def predict(
    job: JobId,
    samples: Annotated[
        list[str] | None,
        typer.Argument(
            parser=user_path_or_url,
            metavar="[INPUT]...",
            help="The samples: .npy, .npz (x), or .csv, .jsonl, .parquet, .feather with the data's columns, or a folder of "
            "those, or a URL; or images, and folders of them. - is standard input.",
            show_default="the job's own validation samples",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", parser=user_path, metavar="FILE", help="A file for the outputs: .npy, .npz or .csv."),
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header",
            metavar="",
            help="Whether a .csv begins with a line of column names.",
            show_default="the job's data.header",
        ),
    ] = None,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code",
            metavar="",
            help="Run the job's code, if its model is code, in this process, as you. Not needed for jobs of this machine.",
        ),
    ] = False,
    server: Server = None,
    token_file: TokenFile = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Prints the predictions of a job's model.

    Prints one line per sample: the class for a classifier, otherwise the
    outputs of the last layer; for images, after the name of the file.
    With -o, a .csv file has the columns class and probability_K (for a
    classifier) and outputK; an .npz file has the arrays classes,
    probabilities and outputs, and labels where classes have names; a .npy
    file has the outputs only. The first two name the files of images.
    Several outputs that a model returns, as in a dictionary, have their
    names in columns (NAME, NAME_K) and arrays.

    Samples are prepared as the training data was. Columns of a table
    are matched by the names that they had in the training data; a target
    column is ignored. For the job's own samples, the target is printed
    where it differs from the prediction.
    Needs the extra: pip install 'thalweg\\[workers]'

    [bold]Examples[/]

    [cyan]thalweg predict digits-1[/]
    [cyan]thalweg predict digits-1 images.npy[/]
    [cyan]thalweg predict digits-1 new.csv --json -o outputs.npy[/]
    [cyan]thalweg predict pets-1 photo.png holiday/[/]
    [cyan]thalweg predict trips-1 trips/year=2026[/]
    [cyan]zcat new.csv.gz | thalweg predict digits-1 -[/]
    """
    if output:
        check_name(output)
        check_output(output, "--output")
    with connected(server, token_file, data) as client:
        found = client.job(job)
        parameters, slab = found.slab()
        targets, notice, files = None, "", tuple[str, ...]()
        allowed = allow_code or found.is_own
        with tempfile.TemporaryDirectory(prefix="thalweg-") as folder:
            fetch = partial(found.download_data, folder=Path(folder))
            if samples:
                x, notice, files = read_input([*map(_input, samples)], found.spec, parameters, header)
            else:
                x, targets = read_own_samples(found.spec, fetch, allow_code=allowed)
            if notice:
                complain(notice)
            prediction = predict_with(found.spec, parameters, slab, x, fetch if allowed else None)
            prediction = replace(prediction, files=files)
            for notice in prediction.notices:
                complain(notice)
    outputs = prediction.outputs
    if output:
        write_outputs(output, prediction)
    if json:
        own: dict[str, Any] = {} if targets is None else {"targets": targets.tolist()}
        own |= {"class_names": list(prediction.names)} if prediction.names else {}
        print_json({"job": job} | as_json(prediction) | own)
    elif output:
        console().print(f"{output}: outputs for {len(outputs):,} samples", markup=False, soft_wrap=True)
    else:
        _print_prediction(prediction, targets)


def _input(text: str) -> Path | str:
    return text if is_url(text) else user_path(text)


def _print_prediction(prediction: Prediction, targets: NDArray[Any] | None) -> None:
    """Prints a line for each sample, with its file, if that is an image, and its target if there is one and it differs."""
    if prediction.named:
        _print_named(prediction)
        return
    classes = prediction.classes if prediction.labels is None else prediction.labels
    values = prediction.outputs if classes is None else classes
    predicted = values.reshape(len(values), math.prod(values.shape[1:]))
    labels = predicted if targets is None else _labels(targets, predicted)
    for index, (row, label) in enumerate(zip(predicted, labels, strict=True)):
        target = f" (target {_words(label)})" if (row != label).any() else ""
        file = f"{prediction.files[index]}: " if prediction.files else ""
        console().print(file + _words(row) + target, markup=False, soft_wrap=True)


def _print_named(prediction: Prediction) -> None:
    """Prints a line for each sample, with the names of its outputs."""
    for index in range(len(prediction.outputs)):
        file = f"{prediction.files[index]}: " if prediction.files else ""
        outputs = ", ".join(f"{name} {_words(values[index].ravel())}" for name, values in prediction.named.items())
        console().print(file + outputs, markup=False, soft_wrap=True)


def _words(row: NDArray[Any]) -> str:
    return " ".join(value if isinstance(value, str) else f"{value:.6g}" for value in row)


def _labels(targets: NDArray[Any], predicted: NDArray[Any]) -> NDArray[Any]:
    """Targets in the form of a printed prediction, shape (samples, values): for one-hot targets, the class."""
    rows = targets.reshape(len(targets), math.prod(targets.shape[1:]))
    return rows.argmax(1)[:, None] if rows.shape[1] != predicted.shape[1] else rows


def plot(
    job: JobId,
    slices: Annotated[
        list[str] | None,
        typer.Option(
            "--slice",
            metavar="TENSOR[I,J]",
            help="Draw the loss over this weight, or, with auto, over the weight that moved the most.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=user_path,
            metavar="FILE",
            help="The picture to write: .png, .svg or .pdf.",
            show_default="JOB.png",
        ),
    ] = None,
    server: Server = None,
    token_file: TokenFile = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Draws a job's learning curve, or a slice of its loss.

    With --slice, draws the loss over one weight, with all others fixed at
    their values at the end (bold) and during training (faint), and the
    path of training along it. Needs the extras: pip install 'thalweg\\[plot,workers]'

    [bold]Examples[/]

    [cyan]thalweg plot digits-1[/]
    [cyan]thalweg plot digits-1 --slice auto[/]
    [cyan]thalweg plot digits-1 --slice '2.weight\\[3,5]' -o slice.svg[/]
    """
    if slices and len(slices) > 1:
        raise invalid(Violation("--slice", f"is given {len(slices)} times; a picture shows one weight"))
    element = parse_element(slices[0]) if slices and slices[0] != _AUTO else None
    suffix = "".join(f"-{part}" for part in (element.tensor, *element.index)) if element else "-slice" if slices else ""
    path = (output or Path(f"{job}{suffix}.png")).absolute()
    if path.suffix.lower() not in PICTURES:
        raise invalid(Violation("--output", f"{path.name}: the name of a picture must end in one of {', '.join(PICTURES)}"))
    check_output(path, "--output")
    with connected(server, token_file, data) as client:
        found = client.job(job)
        figure = loss_slice(found, element) if slices else learning_curve(found)
    save_figure(figure, path)
    if json:
        print_json({"job": job, "picture": str(path)})
    else:
        console().print(str(path), markup=False, soft_wrap=True)

"""Folders of images, from the client to predictions with the names of their classes."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.client.conftest import Command
from tests.client.helpers import Printed, fleet_of_threads
from tests.end_to_end.cluster import running_server
from thalweg.client import Client, JobFailedError, ThalwegError
from thalweg.client.inputs import read_images
from thalweg.client.jobfile import load_job
from thalweg.learning.data import DataError, Temporary
from thalweg.learning.data.remote.located import located
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

HEIGHT, WIDTH = 6, 8
JOB: dict[str, Any] = {
    "model": {"layers": [{"flatten": {}}, {"dense": {"units": 2}}], "loss": "softmax_cross_entropy"},
    "training": {"epochs": 20, "batch_size": 8, "microbatches": 4, "workers": 2},
    "optimizer": {"adam": {"learning_rate": 0.05}},
}


def picture(kind: str, number: int, mode: str) -> NDArray[np.uint8]:
    """Light above for suns, below for seas."""
    random = np.random.default_rng([number, len(kind)])
    shape = (HEIGHT, WIDTH, 3) if mode == "RGB" else (HEIGHT, WIDTH)
    pixels = random.integers(0, 60, shape).astype(np.uint8)
    half = slice(0, HEIGHT // 2) if kind == "sun" else slice(HEIGHT // 2, None)
    pixels[half] += 150
    return pixels


def write(folder: Path, mode: str = "RGB", count: int = 12) -> Path:
    for kind in ("sun", "sea"):
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(picture(kind, number, mode)).save(folder / kind / f"{number:02}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def submit(client: Client, folder: Path, **data: Any) -> Any:
    return client.submit(JOB | {"data": {"images": str(folder)} | data})


@pytest.mark.parametrize(("mode", "pixels"), [("RGB", {}), ("L", {}), ("RGB", {"standardize": True})])
def test_images_are_learned_and_predicted_by_the_names_of_their_folders(
    mode: str, pixels: dict[str, Any], tmp_path: Path
) -> None:
    folder = write(tmp_path / "pictures", mode)
    digests = set()
    for workers in (1, 2):
        with running_server(tmp_path / f"server-{workers}") as server, fleet_of_threads(server), Client(server.address) as client:
            job = submit(client, folder, validation={"fraction": 0.25, "stratify": "y"}, **pixels)
            digests.add(job.wait().weights_sha256)
            x = np.stack([picture(kind, 50, mode).reshape(HEIGHT, WIDTH, -1) for kind in ("sea", "sun")]).transpose(0, 3, 1, 2)
            assert x.shape[1] == (3 if mode == "RGB" else 1)
            prediction = job.prediction(x)
            assert list(prediction.names) == ["sea", "sun"]
            assert prediction.labels.tolist() == ["sea", "sun"]
    assert len(digests) == 1


def test_pixels_can_stay_integers(tmp_path: Path) -> None:
    folder = write(tmp_path / "pictures")
    with running_server(tmp_path / "server") as server, fleet_of_threads(server), Client(server.address) as client:
        by_255, as_they_are = (submit(client, folder, pixels=pixels) for pixels in ("unit", "none"))
        assert by_255.wait().weights_sha256 != as_they_are.wait().weights_sha256
        assert as_they_are.slab()[0].preprocessing.dtype == "uint8"


def test_files_of_images_are_predicted_from(command: Command, tmp_path: Path) -> None:
    folder = write(tmp_path / "pictures")
    new = tmp_path / "new"
    (new / "more").mkdir(parents=True)
    (new / "notes.txt").write_text("no image")
    for kind, file in (("sea", "1.png"), ("sun", "more/2.webp")):
        Image.fromarray(picture(kind, 50, "RGB")).save(new / file, lossless=True)
    Image.fromarray(picture("sun", 50, "L")).save(tmp_path / "grey.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "small.png")
    sea, sun, grey = new / "1.png", new / "more" / "2.webp", tmp_path / "grey.png"
    with running_server(tmp_path / "server") as server, fleet_of_threads(server), Client(server.address) as client:
        job, table = submit(client, folder, pixels="unit"), client.submit("xor")
        job.wait()
        pixels = np.stack([picture(kind, 50, "RGB") for kind in ("sea", "sun")]).transpose(0, 3, 1, 2)
        wanted = job.predict(pixels)
        assert job.predict([sea, str(sun)]).tolist() == job.predict(new).tolist() == wanted.tolist()
        assert job.prepare(str(sea)).tolist() == job.prepare(pixels[:1]).tolist()
        found = job.prediction([grey, sea])
        assert found.files == (str(grey), str(sea))
        assert found.labels is not None
        assert found.labels.tolist() == ["sun", "sea"]

        def predict(*arguments: object) -> Printed:
            return command("predict", job.id, *arguments, "--server", server.address)

        assert predict(new, grey).out == f"{sea}: sea\n{sun}: sun\n{grey}: sun\n"
        assert predict(sun, "--json").json["files"] == [str(sun)]
        predict(new, "-o", tmp_path / "out.csv")
        assert [line.split(",")[:2] for line in (tmp_path / "out.csv").read_text().splitlines()] == [
            ["file", "class"],
            [str(sea), "sea"],
            [str(sun), "sun"],
        ]
        np.save(tmp_path / "x.npy", pixels)
        assert predict(tmp_path / "x.npy").out == "sea\nsun\n"
        small = "small.png' has 4 × 4 pixels, but the job has learned from images of 8 × 6; bring it to that size"
        assert small in predict(tmp_path / "small.png").err
        assert "INPUT: there is no file" in predict(sea, tmp_path / "lost.png").err
        with pytest.raises(ThalwegError, match=f"^x: .*{small}"):
            job.predict(tmp_path / "small.png")
        with pytest.raises(
            ThalwegError, match=r"paths of images are for jobs that have learned from images, and the job has learned"
        ):
            table.predict(sea)
        for arguments, told in (
            (["a.csv", "b.csv"], "INPUT: is given several times; several"),
            ([sea], "paths of images are for jobs"),
        ):
            assert told in command("predict", table.id, *arguments, "--server", server.address).err


def test_samples_to_test_with_may_be_in_a_folder_of_their_own(command: Command, tmp_path: Path) -> None:
    folder, own = write(tmp_path / "pictures"), write(tmp_path / "own", count=3)
    shutil.rmtree(own / "sea")
    with running_server(tmp_path / "server") as server, fleet_of_threads(server), Client(server.address) as client:
        job = submit(client, folder, test={"file": str(own)})
        result = job.wait()
        assert result.test is not None
        assert result.test.accuracy == 1
        printed = command("predict", job.id, "--server", server.address)
        assert printed.out == "sun\n" * 3
        assert command("predict", job.id, "--json", "--server", server.address).json["targets"] == ["sun"] * 3


def test_reading_images_without_pillow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "1.png").touch()
    header = pb.ParametersHeader(preprocessing=job_pb2.Preprocessing(shape=[1, 2, 2]))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ThalwegError, match=r"^x: Pillow is not installed on this machine; pip install 'thalweg\[data\]'$"):
        read_images([tmp_path / "1.png"], job_pb2.JobSpec(data=job_pb2.Data(images="pets/")), header, "x")


def test_images_with_colours_are_no_grey_ones(tmp_path: Path) -> None:
    folder = write(tmp_path / "pictures", "L")
    with running_server(tmp_path / "server") as server, fleet_of_threads(server), Client(server.address) as client:
        job = submit(client, folder)
        job.wait()
        Image.fromarray(picture("sun", 50, "RGB")).save(tmp_path / "new.png")
        with pytest.raises(ThalwegError, match=r"new\.png' has colours, but the job has learned from grey images; make it grey"):
            job.predict(tmp_path / "new.png")


def wrong_size(folder: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "sun" / "small.png")


def no_image(folder: Path) -> None:
    (folder / "sun" / "11.png").write_text("text")


def cut(folder: Path) -> None:
    whole = (folder / "sun" / "11.png").read_bytes()
    (folder / "sun" / "11.png").write_bytes(whole[: len(whole) // 2])


def no_class(folder: Path) -> None:
    (folder / "sun" / "11.png").rename(folder / "11.png")


def one_class(folder: Path) -> None:
    shutil.rmtree(folder / "sun")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (wrong_size, "'sun/small.png' has 4 × 4 pixels, but 'sea/00.png' has 8 × 6; bring all images to one size"),
        (no_image, "'sun/11.png' cannot be read as an image: it is in no format that Pillow knows; replace or remove it"),
        (cut, "'sun/11.png' cannot be read as an image: "),
        (no_class, "'11.png' is in no folder of a class; put the images of each class into a folder below "),
        (one_class, "has the class 'sea' alone; add the folders of others"),
    ],
)
def test_what_is_wrong_is_told_with_the_file(spoil: Any, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "pictures")
    spoil(folder)
    with running_server(tmp_path / "server") as server, fleet_of_threads(server), Client(server.address) as client:
        job = submit(client, folder)
        with pytest.raises(JobFailedError) as caught:
            job.wait()
        assert f"data.images: {message}" in str(caught.value) or message in str(caught.value)


def test_a_folder_of_a_class_without_images_is_an_error(tmp_path: Path) -> None:
    folder = write(tmp_path / "pictures")
    (folder / "moon").mkdir()
    (folder / "moon" / "1.tiff").write_bytes(b"")
    (folder / ".cache").mkdir()
    told = r"^data\.images: the folder 'moon' below '.*' has no images, and each folder is a class; add images, or remove it$"
    with pytest.raises(ThalwegError, match=told):
        load_job(JOB | {"data": {"images": str(folder)}})
    at_url = job_pb2.Data(images=f"file://{folder}")
    with pytest.raises(DataError, match=told):
        located(at_url, Temporary(Path))
    (folder / "mars").mkdir()
    with pytest.raises(ThalwegError, match=r"the folders 'mars', 'moon' below '.*' have no images, .* remove them$"):
        load_job(JOB | {"data": {"images": str(folder)}})
    for name in ("moon", "mars"):
        shutil.rmtree(folder / name)
    assert len(load_job(JOB | {"data": {"images": str(folder)}}).parts) == len(located(at_url, Temporary(Path)).files) == 24

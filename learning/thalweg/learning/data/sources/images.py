"""Folders of images, one for each class, which are decoded once. Imports Pillow."""

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import PIL
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from thalweg.learning.data.access import Access
from thalweg.learning.data.errors import DataError
from thalweg.learning.data.memory import check_memory
from thalweg.learning.data.sources.columns import Source
from thalweg.learning.data.sources.files import SourceFile, source_files
from thalweg.learning.data.sources.npz import load_array
from thalweg.v1 import job_pb2

_FIELD = "data.images"
# Of what is decoded and kept: another one, and it is decoded again.
_FORMAT = 1
# Modes of images without colours, with or without transparency.
_GREY = frozenset({"1", "L", "LA"})
# The mode of all images if some have colours: one channel for each letter.
_COLOURS = "RGB"
_MAX_PIXEL = 255.0
# What Pillow raises for a damaged file.
_UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError)


def source(data: job_pb2.Data, access: Access) -> Source:
    """The images of a job and the labels of their classes. Raises DataError if a file is no image, or images differ in size."""
    files = source_files(access, _FIELD, data.images, data.sha256)
    classes = _classes(files, data.images)
    labels = {name: label for label, name in enumerate(classes)}
    # Releases of Pillow may decode differently.
    key = f"images-{_FORMAT}-{PIL.__version__}-{data.sha256}"
    x = load_array(access.made(key, lambda path: _decode(files, path)), _FIELD, data.images)
    y = np.array([labels[_class_of(file)] for file in files], np.int64)
    unit = data.pixels == "unit" or not (data.pixels or data.standardize)
    return Source(x, y, classes=classes, divisor=_MAX_PIXEL if unit else 0.0)


def decoded(files: Sequence[SourceFile], shape: Sequence[int], field: str) -> NDArray[np.uint8]:
    """Images to predict from, shape (images, channels, height, width); `shape` is that of those that a job has learned from.

    Raises DataError, whose message begins with `field`, if a file is no image, or one of another size, or has colours that the
    others did not have; MemoryLackError if they do not fit in memory.
    """
    channels, height, width = shape
    check_memory(f"{field}: {len(files):,} images", len(files) * math.prod(shape), "predict from fewer at a time")
    x = np.empty((len(files), channels, height, width), np.uint8)
    for position, file in enumerate(files):
        with _opened(file, field) as image:
            if image.size != (width, height):
                problem = f"{_size(*image.size)} pixels, but the job has learned from images of {_size(width, height)}"
                raise DataError(f"{field}: {file.name!r} has {problem}; bring it to that size")
            if channels == 1 and image.mode not in _GREY:
                raise DataError(f"{field}: {file.name!r} has colours, but the job has learned from grey images; make it grey")
            x[position] = _pixels(image, channels, file, field)
    return x


def _classes(files: Sequence[SourceFile], folder: str) -> tuple[str, ...]:
    for file in files:
        if not _class_of(file):
            problem = f"{file.name!r} is in no folder of a class; put the images of each class into a folder below {folder!r}"
            raise DataError(f"{_FIELD}: {problem}")
    return tuple(sorted({_class_of(file) for file in files}))


def _class_of(file: SourceFile) -> str:
    parts = PurePosixPath(file.name).parts
    return parts[0] if len(parts) > 1 else ""


def _decode(files: Sequence[SourceFile], path: Path) -> None:
    """Writes all images to a file of NumPy's: uint8 of shape (images, channels, height, width)."""
    first, grey = files[0], True
    width, height = 0, 0
    for file in files:
        with _opened(file, _FIELD) as image:
            if file is first:
                width, height = image.size
            elif image.size != (width, height):
                problem = f"{file.name!r} has {_size(*image.size)} pixels, but {first.name!r} has {_size(width, height)}"
                raise DataError(f"{_FIELD}: {problem}; bring all images to one size")
            grey = grey and image.mode in _GREY
    channels = 1 if grey else len(_COLOURS)
    with path.open("wb") as out:
        npy.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": (len(files), channels, height, width)})
        for file in files:
            with _opened(file, _FIELD) as image:
                out.write(_pixels(image, channels, file, _FIELD).data)


def _pixels(image: Image.Image, channels: int, file: SourceFile, field: str) -> NDArray[np.uint8]:
    """The pixels of an open image, shape (channels, height, width)."""
    try:
        pixels = np.asarray(image.convert("L" if channels == 1 else _COLOURS), np.uint8)
    except _UNREADABLE as error:
        raise _damaged(file, error, field) from error
    return np.ascontiguousarray(pixels.reshape(image.height, image.width, channels).transpose(2, 0, 1))


def _opened(file: SourceFile, field: str) -> Image.Image:
    try:
        image = Image.open(file.path)
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise _damaged(file, error, field) from error
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        most = f"at most {Image.MAX_IMAGE_PIXELS:,} are decoded"
        raise DataError(f"{field}: {file.name!r} has {_size(*image.size)} pixels; {most}")
    return image


def _damaged(file: SourceFile, error: Exception, field: str) -> DataError:
    reason = "it is in no format that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
    return DataError(f"{field}: {file.name!r} cannot be read as an image: {reason}; replace or remove it")


def _size(width: int, height: int) -> str:
    return f"{width} × {height}"

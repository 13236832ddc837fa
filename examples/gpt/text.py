"""The source text of Python's standard library, as windows of bytes."""

import sysconfig
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class Windows:
    """Windows of a text: `x` the bytes of one, `y` the bytes that follow each of them."""

    def __init__(self, text: bytes, context: int) -> None:
        self.text = np.frombuffer(text, np.uint8).astype(np.int64)
        self.context = context

    def __len__(self) -> int:
        """The number of windows, which do not overlap."""
        return (len(self.text) - 1) // self.context

    def __getitem__(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """One window."""
        start = index * self.context
        return self.text[start : start + self.context], self.text[start + 1 : start + self.context + 1]


def windows(context: int, characters: int) -> Windows:
    """The entry point of `job.toml`: the first `characters` bytes of the library's modules, in the order of their names."""
    folder = Path(sysconfig.get_path("stdlib"))
    text = bytearray()
    for path in sorted(folder.glob("*.py")):
        text += path.read_bytes()
        if len(text) >= characters:
            break
    return Windows(bytes(text[:characters]), context)

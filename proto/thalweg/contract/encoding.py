"""Text files that users write are UTF-8, with or without a byte-order mark. This is the error for others."""

import codecs
from pathlib import Path

# The codec that accepts a mark and leaves it out.
UTF8 = "utf-8-sig"
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BLOCK = 1 << 20


def why_not_utf8(path: Path) -> str:
    """What is wrong with a file that could not be decoded, and what to do, as the rest of a sentence about it. Raises OSError."""
    with path.open("rb") as file:
        if file.read(2) in _UTF16_MARKS:
            return "is UTF-16 text; save it as UTF-8"
        file.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        line = 1
        while block := file.read(_BLOCK):
            try:
                line += decoder.decode(block).count("\n")
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                return f"is not UTF-8 text: line {line} has the byte 0x{error.object[error.start]:02x}; save it as UTF-8"
    return "is not UTF-8 text: it ends within a character; save it as UTF-8"

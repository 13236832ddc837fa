"""Text from workers, fleets, shards and clients, which is shown to other people, on terminals and in logs."""

import logging
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

# The most characters of a text from a peer, by kind.
MAX_FLEET_NAME = 100
MAX_WORKER_NAME = 200
MAX_ADDRESS = 300
# A worker's failure, as the worker, its fleet or a shard reports it.
MAX_PROBLEM = 1000
# In bytes, the most of one value in a status, and of all of its violations. gRPC sends a status three times in its trailers, and
# trailers of more than 8 KiB may be refused.
MAX_STATUS_VALUE = 300
MAX_STATUS_BYTES = 1400
# A line of another program that explains why it ended.
MAX_LAST_WORDS = 200

# Control characters (terminals obey them), format characters (some turn the direction of what follows), lone surrogates, and
# separators of lines and paragraphs.
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# They join letters and emoji, and do nothing else.
_JOINERS = "\u200c\u200d"
_CUT = "..."


def visible(text: str, limit: int | None = None) -> str:
    """The text in one line. Characters that act on a terminal or a log are written as escapes, such as `\\x1b`.

    It is cut to at most `limit` characters. Escapes that are in it stay unchanged.
    """
    shown = text if limit is None else text[: limit + 1]
    if not shown.isprintable():
        shown = "".join(map(_visible, shown))
    return shown if limit is None or len(shown) <= limit else shown[: limit - len(_CUT)] + _CUT


def visible_lines(text: str) -> str:
    """The same for a text of several lines, which are kept."""
    return "\n".join(map(visible, text.split("\n")))


def is_visible(character: str) -> bool:
    """Whether a character is kept."""
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) not in _INVISIBLE


def closest(name: str, known: Iterable[str]) -> str:
    """The known name that is most probably meant by an unknown one; empty if none is near. Case matters least."""
    names = list(known)
    folded = name.casefold()
    same = [each for each in names if each.casefold() == folded]
    return next(iter(same or get_close_matches(name, names, 1)), "")


def _visible(character: str) -> str:
    if is_visible(character):
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


class VisibleFormatter(logging.Formatter):
    """Formats log records without characters that act on a terminal, each in one line; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as logging calls it
        return visible(super().formatMessage(record))

    def formatException(self, ei: "logging._SysExcInfoType") -> str:  # noqa: N802 - as logging calls it
        return visible_lines(super().formatException(ei))

"""What the text of a cell is: a number, a truth value, a date or time, a missing value; and why it is no number."""

import datetime
import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from enum import Enum

from thalweg.learning.data.sources.text_tables.words import MAX_SHOWN, Told, Words

# With these characters alone, float() accepts decimal numbers only: no nan, no inf, no underscores, no digits of other scripts.
DECIMAL = b"0123456789+-.eE \t"
WHOLE = b"0123456789+- \t"
# Ways to write that a value is missing, in lower case. Some of them are words, too, and so none in a column of text.
MISSING = frozenset({"", "na", "n/a", "#n/a", "#na", "<na>", "nan", "null", "\\n"})
MISSING_BESIDE_NUMBERS = MISSING | {"?", "-", ".", "none", "missing"}
_INFINITE = frozenset({"inf", "infinity"})
_TRUTH = {"true": True, "false": False}
_CURRENCIES = "$€£¥₹"
# What looks like a number that is written in another way: with separators, units of money, in hexadecimal.
_LIKE_A_NUMBER = re.compile(
    rf"[+-]?[{_CURRENCIES}]?\s*[+-]?(?:0[xX][0-9a-fA-F]+|[\d.,][\d.,_'\s]*(?:[eE][+-]?\d+)?)\s*[{_CURRENCIES}%‰]?"
)
_DATE = re.compile(r"(\d{1,4})([-/.])(\d{1,2})\2(\d{1,4})(?:[T ]\s*(\d{1,2}:\d{2}.*))?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:[,.' ]\d{3})+(?:[.,]\d+)?")
_MICROSECONDS = 1_000_000
_EPOCH = datetime.datetime(1970, 1, 1)


class Order(Enum):
    """In which order a date has its parts."""

    YEAR = "year, month, day"
    DAY = "day, month, year"
    MONTH = "month, day, year"


class Decimal:
    """How a table writes decimal numbers: with `mark`, a point or a comma."""

    def __init__(self, mark: str = ".") -> None:
        self.mark = mark
        self._other = "," if mark == "." else "."

    def plain(self, text: str) -> str:
        """The text of numbers with points. What has a point already is no number then."""
        return text if self.mark == "." else text.replace(".", "\0").replace(",", ".")

    def number(self, cell: str) -> float | None:
        """The number that a cell is, if it is a decimal number that fits in float64."""
        text = self.plain(cell)
        if not text.isascii() or text.encode().translate(None, DECIMAL):
            return None
        try:
            number = float(text)
        except ValueError:
            return None
        return number if math.isfinite(number) else None


def is_like_a_number(cell: str) -> bool:
    """Whether a cell seems to be meant as a number, but is written in another way."""
    text = cell.replace("\0", "").strip()
    if text.lower().lstrip("+-") in _INFINITE:
        return True
    if any(character.isdigit() for character in text):
        return bool(_LIKE_A_NUMBER.fullmatch(text)) and not _DATE.fullmatch(text)
    return len(text) == 1 and unicodedata.numeric(text, None) is not None and not text.isalpha()


def truth_of(cell: str) -> bool | None:
    """The truth value that a cell is: true or false, in any case."""
    return _TRUTH.get(cell.strip().lower())


def orders_of(cell: str) -> frozenset[Order]:
    """The orders in which a cell is a date, or a date and a time."""
    text = cell.strip()
    if not (found := _DATE.fullmatch(text)):
        return frozenset()
    orders = (Order.YEAR,) if len(found[1]) == 4 else (Order.DAY,) if found[2] == "." else (Order.DAY, Order.MONTH)
    return frozenset(order for order in orders if time_of(text, order) is not None)


def time_of(cell: str, order: Order) -> int | None:
    """The date or time that a cell is, in microseconds since 1970 in UTC; one without a zone is in UTC."""
    if not (found := _DATE.fullmatch(cell.strip())):
        return None
    parts = (found[1], found[3], found[4])
    year, month, day = parts if order is Order.YEAR else (parts[2], *((parts[1], parts[0]) if order is Order.DAY else parts[:2]))
    if len(year) != 4:
        return None
    clock = found[5] or "00:00"
    if clock[1] == ":":
        clock = f"0{clock}"
    try:
        moment = datetime.datetime.fromisoformat(
            f"{year}-{month:0>2}-{day:0>2}T{clock.strip().replace(' +', '+').replace(' Z', 'Z')}"
        )
    except ValueError:
        return None
    if moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * _MICROSECONDS + since.microseconds


def missing_in(told: frozenset[str] | None, usual: frozenset[str]) -> Callable[[str], bool]:
    """Whether a cell says that its value is missing: an empty one, or one of those that the job gives, or of the usual ones."""
    if told is not None:
        return lambda cell: not (text := cell.strip()) or text in told
    return lambda cell: cell.strip().lower() in usual


def why_no_number(cell: str, decimal: Decimal, words: Words, told: Told) -> str:
    """What is wrong with a cell that should be a number, and what to do."""
    word = cell.strip().lower()
    if "\0" in cell:
        return "is not a number: it holds a NUL; if the file is UTF-16, save it as UTF-8"
    if word in MISSING_BESIDE_NUMBERS or word.lstrip("+-") in _INFINITE:
        return "is not a number; fill in a value, or remove the line"
    plain = decimal.plain(word)
    if plain.isascii() and not plain.encode().translate(None, DECIMAL):
        try:
            float(plain)
        except ValueError:
            return "is not a number"
        return "is too large for float64"
    if not any(character.isdecimal() for character in word):
        advice = "is not a number; replace classes by whole numbers from 0, or remove the column"
        # The list replaces the usual words.
        missing = json.dumps([*sorted(told.missing or ()), cell.strip()], ensure_ascii=False)
        as_missing = words.setting(f"data.missing_values = {missing} if it says that the value is missing")
        return advice + (as_missing if len(missing) <= MAX_SHOWN and not told.json_lines else "")
    example = f"-1234{decimal.mark}5 or 1{decimal.mark}5e-3"
    advice = f"is not a number; write numbers as in {example}"
    if word[-1] in "%‰":
        return f"{advice}, without the percent sign"
    if word[0] in _CURRENCIES or word[-1] in _CURRENCIES:
        return f"{advice}, without the currency"
    if Decimal("," if decimal.mark == "." else ".").number(word) is not None:
        other = "comma" if decimal.mark == "." else "point"
        separator = "; a separator of thousands must be removed" if _THOUSANDS.fullmatch(word) else ""
        return advice + words.setting(f'data.decimal = "{other}"') + separator
    if _THOUSANDS.fullmatch(word):
        return f"{advice}, without separators of thousands"
    return advice


def numbers_of(column: Sequence[str], decimal: Decimal) -> list[float] | None:
    """The numbers that all cells of a column are; None if one is not."""
    text = decimal.plain("".join(column))
    if not text.isascii() or text.encode().translate(None, DECIMAL):
        return None
    try:
        numbers = list(map(float, column if decimal.mark == "." else map(decimal.plain, column)))
    except ValueError:
        return None
    # Most columns are right, and a sum is faster than a check of each number.
    return numbers if math.isfinite(sum(numbers)) or all(map(math.isfinite, numbers)) else None

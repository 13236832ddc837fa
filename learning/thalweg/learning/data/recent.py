"""What was used last, up to a number of bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Keeps values by keys. Of those that were used longest ago, as many are dropped as are needed for `limit` bytes.

    Threads may use it at once; each value is made by one of them, while others may take values that are kept.
    """

    def __init__(self, limit: int, size: Callable[[Value], int]) -> None:
        self._limit = limit
        self._size = size
        self._lock = threading.Lock()
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._sizes: dict[Key, int] = {}
        self._making: dict[Key, threading.Lock] = {}

    @property
    def bytes(self) -> int:
        """The bytes of the values that are kept: more than the limit only if there is one value."""
        with self._lock:
            return sum(self._sizes.values())

    def get(self, key: Key, needed: int, make: Callable[[], Value]) -> Value:
        """The value of a key, which `make` makes if it is not kept, after there is room for about `needed` bytes."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._values:
                    return self._values[key]
                self._drop(self._limit - needed)
            try:
                value = make()
                with self._lock:
                    size = self._size(value)
                    self._drop(self._limit - size)
                    self._values[key], self._sizes[key] = value, size
            finally:
                with self._lock:
                    self._making.pop(key, None)
        return value

    def _drop(self, limit: int) -> None:
        """Drops values until the others have at most `limit` bytes, or there are none."""
        kept = sum(self._sizes.values())
        while self._values and kept > limit:
            key, _ = self._values.popitem(last=False)
            kept -= self._sizes.pop(key)

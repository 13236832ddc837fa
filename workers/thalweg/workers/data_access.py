"""What the data of a job may use of a node: its uploads, and the node's cache of data, which all workers of a user share."""

import hashlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Self

from thalweg.contract import folders
from thalweg.contract.resources import size_text
from thalweg.learning.data.access import Fetch, Fill, Progress
from thalweg.learning.data.remote.limits import ALL_ALLOWED, Limits
from thalweg.learning.errors import NodeError
from thalweg.workers.node_cache import NodeCache

_log = logging.getLogger(__name__)

_VARIABLE = "THALWEG_DATA_CACHE"
_TEMPORARY = "thalweg-data-"
_CONTENT = "content"
# The bytes that are kept of what nobody uses, if the operator does not say.
DEFAULT_CACHE_BYTES = 32 << 30
# A context in which something is done: what, for people; how many seconds it may take beside the limit of the job; how far it is.
Doing = Callable[[str, float, Progress | None], AbstractContextManager[object]]


@dataclass(frozen=True)
class DataPolicy:
    """What the operator of a fleet says about the data of jobs: what it may name, and the bytes that a node keeps unused."""

    limits: Limits = ALL_ALLOWED
    cache_bytes: int = DEFAULT_CACHE_BYTES


# Where no operator says anything: a job names nothing of a node.
DEFAULT_POLICY = DataPolicy(Limits(roots=()))
# Of this user's own jobs.
OWN_POLICY = DataPolicy()


class NodeAccess:
    """The uploads of a job, and what is made from them: in the node's cache, and held there until this context ends.

    `doing` is a context within which a worker waits for others.
    """

    def __init__(self, fetch: Fetch, policy: DataPolicy = DEFAULT_POLICY, doing: Doing = lambda *_: nullcontext()) -> None:
        self.limits = policy.limits
        self._fetch = fetch
        self._doing = doing
        self._cache = NodeCache(folders.cache_folder("data", _VARIABLE), _TEMPORARY, policy.cache_bytes)
        self._held = ExitStack()
        self._made: dict[str, Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def doing(self, what: str, progress: Progress | None = None) -> AbstractContextManager[object]:
        """Around something that waits for other machines: it is said in the log, and may take longer than a task."""
        _log.info("%s", what)
        return self._doing(what, inf, progress)

    def upload(self, sha256: str) -> Path:
        """The file that was uploaded under a SHA-256."""
        return self._fetch(sha256)

    def made(self, key: str, fill: Fill) -> Path:
        """The file or folder that `fill` makes, by one worker of this node. Raises what `fill` raises, NodeError without room."""
        try:
            return self._kept(key, fill, temporary=True)
        except OSError as error:
            remedy = f"free some space, or name another folder in {_VARIABLE}"
            raise NodeError(f"what is made from the data cannot be kept on this node: {error}; {remedy}") from error

    def faster(self, key: str, size: int, fill: Fill) -> Path | None:
        """The same, of about `size` bytes, from which data is read faster than as it is; None if the cache has no room for it."""
        problem: object = f"the cache keeps at most {size_text(self._cache.max_bytes)}"
        if size <= self._cache.max_bytes:
            try:
                return self._kept(key, fill, temporary=False)
            except OSError as error:
                problem = error
        _log.warning(
            "prepared samples (%s) are not kept on this node, so that each step takes longer: %s", size_text(size), problem
        )
        return None

    def _kept(self, key: str, fill: Fill, *, temporary: bool) -> Path:
        if key not in self._made:
            name = hashlib.sha256(key.encode()).hexdigest()
            kept = self._cache.kept(name, lambda entry: fill(entry / _CONTENT), _is_whole, self._waiting, temporary=temporary)
            self._made[key] = self._held.enter_context(kept) / _CONTENT
        return self._made[key]

    def _waiting(self) -> AbstractContextManager[object]:
        return self.doing("waiting for another worker of this node, which downloads or prepares the same data")


def _is_whole(folder: Path) -> bool:
    return (folder / _CONTENT).exists()

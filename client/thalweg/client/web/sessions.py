"""Sessions of the page's users: a random id in a cookie stands for a credential that stays in this process."""

import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from thalweg.client.web.gateway import Credential

# A session ends after this time, and when it was not used for this time.
LIFETIME_SECONDS = 12 * 3600.0
IDLE_SECONDS = 3600.0
# When there are more, the one that was not used for the longest time ends.
MAX_SESSIONS = 1000
# A caller at one address may be wrong this often within this time.
MAX_FAILURES = 10
_FAILURE_SECONDS = 60.0
_MAX_CALLERS = 10_000


@dataclass
class Session:
    """One user's session. `methods` are those that the server lets the user call. `csrf` must come with every action.

    `streams` counts those that are open.
    """

    credential: Credential
    opened: float
    used: float
    name: str
    role: str
    methods: Sequence[str] = ()
    streams: int = 0
    id: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    def confirms(self, csrf: str) -> bool:
        """Whether an action's token is this session's."""
        return hmac.compare_digest(csrf.encode(), self.csrf.encode())


class Sessions:
    """The sessions that are open. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, credential: Credential, name: str, role: str, methods: Sequence[str] = ()) -> Session:
        """A new session."""
        now = self._clock()
        session = Session(credential, now, now, name, role, methods)
        while len(self._sessions) >= MAX_SESSIONS:
            self._sessions.popitem(last=False)
        self._sessions[session.id] = session
        return session

    def find(self, session_id: str) -> Session | None:
        """The session with an id, which is used now; None if it has ended."""
        session = self._sessions.get(session_id)
        if session is None:
            return None
        now = self._clock()
        if now - session.opened > LIFETIME_SECONDS or now - session.used > IDLE_SECONDS:
            del self._sessions[session_id]
            return None
        session.used = now
        self._sessions.move_to_end(session_id)
        return session

    def close(self, session: Session) -> None:
        """Ends a session."""
        self._sessions.pop(session.id, None)

    def is_open(self, session: Session) -> bool:
        """Whether a session has not ended."""
        return self.find(session.id) is session

    def may_try(self, caller: str) -> bool:
        """Whether a caller may try to log in: it was not wrong too often lately."""
        recent = [time for time in self._failures.get(caller, []) if self._clock() - time < _FAILURE_SECONDS]
        return len(recent) < MAX_FAILURES

    def failed(self, caller: str) -> None:
        """A caller gave a wrong token."""
        failures = self._failures.setdefault(caller, [])
        self._failures.move_to_end(caller)
        failures.append(self._clock())
        del failures[:-MAX_FAILURES]
        while len(self._failures) > _MAX_CALLERS:
            self._failures.popitem(last=False)

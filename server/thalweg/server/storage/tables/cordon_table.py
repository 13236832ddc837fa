"""The fleets and nodes on record at which no workers are started."""

from thalweg.server.deciding.allotment.closures import Closed, Closure
from thalweg.server.storage.tables.database import Database


class CordonTable(Database):
    """The cordons in a database."""

    def cordons(self) -> list[Closed]:
        """What is closed."""
        rows = self._database.execute("SELECT fleet, node, closure, since FROM cordons ORDER BY fleet, node")
        return [Closed(fleet, node, Closure(closure), since) for fleet, node, closure, since in rows]

    def put_cordon(self, closed: Closed) -> None:
        """Records that a fleet or a node is closed, in the place of what was on record of it."""
        with self._transaction() as database:
            row = (closed.fleet, closed.node, closed.closure.value, closed.since)
            database.execute("INSERT OR REPLACE INTO cordons (fleet, node, closure, since) VALUES (?, ?, ?, ?)", row)

    def remove_cordon(self, fleet: str, node: str) -> None:
        """Records that a fleet or a node is open."""
        with self._transaction() as database:
            database.execute("DELETE FROM cordons WHERE fleet = ? AND node = ?", (fleet, node))

"""Bulk-synchronous training: a step is computed at its own version, from all the steps before (Valiant 1990)."""

from thalweg.server.deciding.synchrony.rounds import Rounds


class Bulk(Rounds):
    """No step begins before the one before it is applied."""

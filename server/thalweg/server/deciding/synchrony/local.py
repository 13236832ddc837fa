"""Local steps: each microbatch's lane takes some steps of its own, and what the lanes moved is averaged (Stich 2019).

To the server, a round of local steps is one step: the lanes' mean movement is its gradient, the outer optimizer its optimizer.
The plan knows how many minibatches a round takes.
"""

from thalweg.server.deciding.synchrony.rounds import Rounds


class Local(Rounds):
    """No round begins before the one before it is applied."""

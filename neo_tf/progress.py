"""The one shape of a progress callback."""

from typing import Protocol


class Progress(Protocol):
    """A function that is told of each piece of a long piece of work when it is done.

    The function that does the work documents the unit (bytes, tokens, samples) and what all amounts add up to.
    """

    def __call__(self, amount: float, what: str = "") -> None:
        """Reports work that is done.

        Args:
            amount: The work done since the last call, in the unit that the caller was promised.
            what: What the piece was, such as a tensor's name.
        """


def no_progress(amount: float, what: str = "") -> None:
    """Ignores the report: it is the default where nobody watches."""

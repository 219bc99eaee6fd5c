"""Notes: what a user should know although nothing failed, such as tensors that were left out."""

import logging

_logger = logging.getLogger("neo_tf")


def note(text: str) -> None:
    """Says one line through the logger `neo_tf`: on standard error, unless the program sends it elsewhere."""
    _logger.warning("note: %s", text)

"""The environments that `make peers` makes: other runtimes, and clients, that the tests run as programs."""

from pathlib import Path

import pytest

PEERS = Path(__file__).parent.parent / ".peers"


def peer(name):
    """The folder of a peer's environment; where it is not installed, the test is skipped with the reason."""
    if not (PEERS / name / ".done").exists():
        log = PEERS / name / "install.log"
        lines = log.read_text().strip().splitlines() if log.exists() else []
        reasons = [line for line in lines if not line.startswith("WARNING")] or ["`make peers` was not run"]
        pytest.skip(f"{name} is not installed: {reasons[-1]}")
    return PEERS / name

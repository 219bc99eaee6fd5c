"""A replica of a fleet on paper: the sizes of its engine, and the time of each step by its size."""

import bisect
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """Seconds by two numbers: linear between the measured points, and beyond them on the line of the last two.

    Args:
        rows: The first number's values, ascending.
        columns: The second number's values, ascending.
        seconds: For each row a list with a time for each column.
    """

    rows: list
    columns: list
    seconds: list

    def __call__(self, row, column):
        """The seconds at a point; never less than zero."""
        upper, share = _place(self.rows, row)
        right, part = _place(self.columns, column)
        high = self.seconds[upper]
        value = high[right] if part == 1 else high[right - 1] + part * (high[right] - high[right - 1])
        if share != 1:
            low = self.seconds[upper - 1]
            below = low[right] if part == 1 else low[right - 1] + part * (low[right] - low[right - 1])
            value = below + share * (value - below)
        return max(value, 0.0)


def _place(values, value):
    """The index of the upper neighbour, and how far the value is on its way there from the lower one."""
    if len(values) == 1:
        return 0, 1
    upper = min(max(bisect.bisect_left(values, value), 1), len(values) - 1)
    low = values[upper - 1]
    return upper, (value - low) / (values[upper] - low)


@dataclass(frozen=True)
class Machine:
    """One replica: its engine's sizes, and the time of its steps.

    Args:
        name: What it is called.
        slots: The sequences that run at once.
        chunk: The tokens of a prompt that one step runs.
        joins: Whether a prompt's last token is decoded with the other sequences' tokens.
        in_pairs: Whether an even number of rows is decoded.
        block: The tokens of a block of the shared-prefix cache.
        blocks: The blocks that it has room for; 0 turns it off.
        prefill: A function from a chunk's tokens and those before it to seconds.
        decode: A function from the rows that are decoded and their mean context to seconds.
        max_queue: The requests that may wait; more are refused.
    """

    name: str
    slots: int
    chunk: int
    joins: bool
    in_pairs: bool
    block: int
    blocks: int
    prefill: object
    decode: object
    max_queue: float = math.inf

    @classmethod
    def read(cls, steps, name, **changes):
        """The machine of measured steps: see fleet_steps.measure_steps."""
        sizes = {key: steps[key] for key in ("slots", "chunk", "joins", "in_pairs", "block", "blocks")}
        return cls(name, prefill=Grid(**steps["prefill"]), decode=Grid(**steps["decode"]), **(sizes | changes))


def floor_machine(name, model, slots, bandwidth, compute):
    """A machine that was not measured: each step takes as long as moving its bytes or its arithmetic, and nothing else.

    Weights and caches have two bytes a number. No real machine is as fast, so its number of replicas is the least that
    could do.

    Args:
        name: Its name.
        model: "model" of steps that were measured in fp32, int8 or int4, whose caches have four bytes a number.
        slots: The sequences that run at once.
        bandwidth: Bytes a second, by its data sheet.
        compute: Floating-point operations a second, by its data sheet.
    """
    weights = 2 * model["parameters"]
    cache = model["cache_bytes_per_sequence"] / 2 / model["n_ctx"]  # of one token
    work = 2 * model["parameters"]  # operations for each token

    def prefill(tokens, past):
        return max(weights / bandwidth, tokens * work / compute)

    def decode(rows, context):
        return max((weights + rows * context * cache) / bandwidth, rows * work / compute)

    return Machine(name, slots, 512, True, False, 64, 0, prefill, decode)

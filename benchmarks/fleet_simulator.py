"""A fleet on paper: replicas of the engine, whose steps take the measured time, and a dispatcher before them.

A replica follows the rules of runtime/engine/engine.py: it admits requests in their order while slots are free, runs
one chunk of one prompt, and then one token of every running sequence. Nothing here imports neo_tf.
"""

import heapq
import itertools
import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field

WORTH_MOVING = 16  # steps that a sequence must still take for the engine to move it to a lower slot


@dataclass(frozen=True)
class Arrival:
    """A request: when it comes, in seconds, and its lengths in tokens.

    Requests of one `prefix` begin with the same `prefix_tokens` tokens, which `prompt` counts, too.
    """

    time: float
    prompt: int
    new_tokens: int
    prefix: object = None
    prefix_tokens: int = 0


@dataclass
class Outcome:
    """What came of a request.

    Attributes:
        arrival: The request.
        replica: The number of the replica that it was sent to.
        refused: Whether the replica's queue was full.
        first: When its first token came, in seconds.
        end: When its last token came.
        reused: The tokens of its prompt that the shared-prefix cache knew.
    """

    arrival: Arrival
    replica: int
    refused: bool = False
    first: float | None = None
    end: float | None = None
    reused: int = 0

    @property
    def wait(self):
        """Seconds from its arrival to its first token."""
        return self.first - self.arrival.time

    @property
    def pace(self):
        """The mean seconds between its tokens; None of a single one."""
        steps = self.arrival.new_tokens - 1
        return (self.end - self.first) / steps if steps else None


@dataclass
class _Sequence:
    """A request in its slot, with the tokens that the slot holds."""

    outcome: Outcome
    slot: int
    cached: int = 0
    keys: list = field(default_factory=list)
    last_step: int = 0  # the number of the decode step that makes its last token


class Replica:
    """An engine on paper.

    Args:
        machine: Its sizes and times.

    Attributes:
        active: The number of requests that run or wait. Those that a step ends count until `settle`.
    """

    def __init__(self, machine):
        self.machine = machine
        self.active = 0
        self._ended = 0  # in the last step
        self._waiting = deque()
        self._prefilling = deque()
        self._running = {}  # {slot: sequence}
        self._free = list(range(machine.slots))  # a heap
        self._steps = 0  # decode steps so far
        self._ending = {}  # {decode step: its last sequences}
        self._cached = 0  # tokens that the running sequences hold together
        self._blocks = OrderedDict()  # of the shared-prefix cache, the least recently used first

    @property
    def queued(self):
        """The number of requests that have no first token yet."""
        return len(self._waiting) + len(self._prefilling)

    @property
    def is_full(self):
        """Whether it refuses another request."""
        return self.active >= self.machine.slots + self.machine.max_queue

    @property
    def is_idle(self):
        """Whether it has nothing to do."""
        return not (self._waiting or self._prefilling or self._running)

    def add(self, outcome):
        """Queues a request."""
        self.active += 1
        self._waiting.append(outcome)

    def settle(self):
        """The last step has ended: what it has ended is gone."""
        self.active -= self._ended
        self._ended = 0

    def step(self, now):
        """Runs one step that begins now, and returns when it ends."""
        while self._waiting and self._free:
            outcome = self._waiting.popleft()
            sequence = _Sequence(outcome, heapq.heappop(self._free))
            if self.machine.blocks:
                sequence.keys = _block_keys(outcome.arrival, self.machine.block, id(outcome))
            self._prefilling.append(sequence)
        if self._prefilling:
            now = self._prefill(self._prefilling[0], now)
        if self._running:
            now = self._decode(now)
        return now

    def _prefill(self, sequence, now):
        machine = self.machine
        length = sequence.outcome.arrival.prompt
        if not sequence.cached:
            sequence.cached = sequence.outcome.reused = self._load(sequence.keys)
        joins = machine.joins and length > 1
        end = length - 1 if joins else length
        chunk = min(machine.chunk, end - sequence.cached)
        if chunk:
            now += machine.prefill(chunk, sequence.cached)
            sequence.cached += chunk
            self._save(sequence.keys[: sequence.cached // machine.block])
        if sequence.cached < end:
            return now
        self._prefilling.popleft()
        new = sequence.outcome.arrival.new_tokens
        if not joins:
            sequence.outcome.first = now
            new -= 1
            if not new:
                self._end(sequence, now)
                return now
        sequence.last_step = self._steps + new
        self._ending.setdefault(sequence.last_step, []).append(sequence)
        self._running[sequence.slot] = sequence
        self._cached += sequence.cached
        return now

    def _decode(self, now):
        if not (self._waiting or self._prefilling):
            self._close_ranks()
        machine = self.machine
        rows = max(self._running) - min(self._running) + 1 if len(self._running) > 1 else 1
        if machine.in_pairs:
            rows += rows % 2
        now += machine.decode(rows, self._cached / rows)
        self._cached += len(self._running)
        self._steps += 1
        newest = next(reversed(self._running.values()))  # a step adds at most one
        if newest.outcome.first is None:
            newest.outcome.first = now
        for sequence in self._ending.pop(self._steps, ()):
            del self._running[sequence.slot]
            self._cached -= sequence.outcome.arrival.prompt + sequence.outcome.arrival.new_tokens - 1
            self._end(sequence, now)
        return now

    def _close_ranks(self):
        """Moves the sequence in the last slot to a free one before it, as the engine does."""
        source = max(self._running)
        if not self._free or self._free[0] > source:
            return
        sequence = self._running[source]
        if sequence.last_step - self._steps >= WORTH_MOVING:
            sequence.slot = heapq.heapreplace(self._free, source)
            # The newest one must stay the last of the dict.
            self._running = {each.slot: each for each in self._running.values()}

    def _end(self, sequence, now):
        sequence.outcome.end = now
        self._ended += 1
        heapq.heappush(self._free, sequence.slot)

    # ---- the shared-prefix cache

    def _load(self, keys):
        known = 0
        while known < len(keys) and keys[known] in self._blocks:
            known += 1
        self._touch(keys[:known])
        return known * self.machine.block

    def _save(self, keys):
        for key in keys[: self.machine.blocks]:
            if key not in self._blocks:
                if len(self._blocks) == self.machine.blocks:
                    self._blocks.popitem(last=False)
                self._blocks[key] = None
        self._touch(keys)

    def _touch(self, keys):
        for key in reversed(keys):
            if key in self._blocks:
                self._blocks.move_to_end(key)


def _block_keys(arrival, block, own):
    """A key for each whole block of a prompt; a prompt's last token belongs to none."""
    shared = arrival.prefix_tokens // block if arrival.prefix is not None else 0
    count = (arrival.prompt - 1) // block
    return [(arrival.prefix, number) if number < shared else (own, number) for number in range(count)]


def simulate(machine, replicas, arrivals, policy):
    """Sends requests to replicas until all of them have ended.

    Args:
        machine: What each replica is.
        replicas: The number of replicas.
        arrivals: The requests, in the order of their times.
        policy: A function from the list of Replicas and an Arrival to the number of the replica that gets it.

    Returns:
        [the Outcome of each request].
    """
    fleet = [Replica(machine) for _ in range(replicas)]
    stepping = [False] * replicas
    ends = []  # a heap of (when a step ends, a number that orders equal times, the replica's number)
    order = itertools.count()
    outcomes = []

    def step(number, now):
        stepping[number] = not fleet[number].is_idle
        if stepping[number]:
            heapq.heappush(ends, (fleet[number].step(now), next(order), number))

    def run_until(time):
        while ends and ends[0][0] < time:
            now, _, number = heapq.heappop(ends)
            fleet[number].settle()
            step(number, now)

    for arrival in arrivals:
        run_until(arrival.time)
        number = policy(fleet, arrival)
        outcome = Outcome(arrival, number)
        outcomes.append(outcome)
        if fleet[number].is_full:
            outcome.refused = True
            continue
        fleet[number].add(outcome)
        if not stepping[number]:
            step(number, arrival.time)
    run_until(math.inf)
    return outcomes

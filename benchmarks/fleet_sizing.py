"""How many replicas a load needs, by the simulator: the load, the goal, and the search."""

import math
from dataclasses import dataclass

import numpy as np
from fleet_simulator import Arrival, simulate

_LEAST_REQUESTS = 4000  # of a simulation: for a 99th percentile
MOST_BUSY = 0.95  # of a fleet's capacity: beyond it queues grow, but more slowly than a short simulation shows
SETTLING = 0.25  # of a simulation, from its beginning, that does not count


@dataclass(frozen=True)
class Workload:
    """Requests that come at random moments (Poisson), with lengths as in `neo-tf benchmark --requests`.

    Args:
        prompt, new_tokens: The least and the most tokens, drawn evenly.
        prefixes: The number of prefixes that prompts begin with, by Zipf's law (the n-th is 1/n as common as the
            first); without them no two prompts begin alike. A prefix comes before the prompt's own tokens.
        prefix_tokens: The length of each prefix.
    """

    prompt: tuple[int, int] = (32, 512)
    new_tokens: tuple[int, int] = (16, 256)
    prefixes: int = 0
    prefix_tokens: int = 0

    def lengths(self, count, seed=0):
        """[(tokens of the prompt, new tokens)] of some requests."""
        random = np.random.default_rng(seed)
        prompts = random.integers(self.prompt[0], self.prompt[1] + 1, count) + self.prefix_tokens
        news = random.integers(self.new_tokens[0], self.new_tokens[1] + 1, count)
        return list(zip(prompts.tolist(), news.tolist(), strict=True))

    def arrivals(self, rate, seconds, seed=0):
        """The requests of this time, or more where they are few: at least 4000."""
        count = max(int(rate * seconds), _LEAST_REQUESTS)
        random = np.random.default_rng([seed, 1])
        times = np.cumsum(random.exponential(1 / rate, count)).tolist()
        chosen = [None] * count
        if self.prefixes:
            weights = 1 / np.arange(1, self.prefixes + 1)
            chosen = random.choice(self.prefixes, count, p=weights / weights.sum()).tolist()
        return [
            Arrival(time, prompt, new, prefix, self.prefix_tokens)
            for time, (prompt, new), prefix in zip(times, self.lengths(count, seed), chosen, strict=True)
        ]

    def describe(self):
        """In words."""
        prefix = f"a shared prefix of {self.prefix_tokens} tokens and " if self.prefixes else ""
        return (
            f"prompts of {prefix}{self.prompt[0]} to {self.prompt[1]} tokens, "
            f"{self.new_tokens[0]} to {self.new_tokens[1]} new ones"
        )


def capacity(machine, lengths):
    """The requests a second that one replica can answer: all at once, until its slots can no longer be filled."""
    arrivals = [Arrival(0.0, prompt, new) for prompt, new in lengths * math.ceil(8 * machine.slots / len(lengths))]
    outcomes = simulate(machine, 1, arrivals, lambda fleet, arrival: 0)
    # The last ones run in a batch that is not full.
    last = sorted(outcome.end for outcome in outcomes)[-machine.slots]
    return (len(outcomes) - machine.slots + 1) / last


def figures(outcomes, settled):
    """Percentiles over the requests that came after the time `settled`, in milliseconds."""
    taken = [outcome for outcome in outcomes if not outcome.refused and outcome.arrival.time >= settled]
    waits = [outcome.wait * 1e3 for outcome in taken]
    paces = [outcome.pace * 1e3 for outcome in taken if outcome.pace is not None]
    prompts = sum(outcome.arrival.prompt for outcome in taken)
    return {
        **{f"first_token_p{rank}_ms": float(np.percentile(waits, rank)) for rank in (50, 90, 99)},
        "between_tokens_p50_ms": float(np.percentile(paces, 50)) if paces else 0.0,
        "reused": sum(outcome.reused for outcome in taken) / prompts,
    }


def replicas_for(machine, workload, rate, policy, goal, seconds):
    """The least number of replicas with which 99 % of the first tokens come in time, and at most 95 % are in use.

    Args:
        machine: Each replica's.
        workload: The requests.
        rate: Requests a second.
        policy: Makes the policy.
        goal: Seconds.
        seconds: The least time to simulate.

    Returns:
        (the number, its figures with "busy", the share of its capacity that is in use).
    """
    arrivals = workload.arrivals(rate, seconds)
    settled = SETTLING * arrivals[-1].time
    one = capacity(machine, workload.lengths(1000))

    def run(count):
        return figures(simulate(machine, count, arrivals, policy()), settled)

    tried = {}

    def is_enough(count):
        tried[count] = run(count)
        return tried[count]["first_token_p99_ms"] <= goal * 1e3

    low = math.ceil(rate / one / MOST_BUSY)
    high = low
    while not is_enough(high):
        low = high + 1
        high = math.ceil(high * 1.1) + 1
        if high > 100 * rate / one + 100:
            raise ValueError(f"{machine.name}: no number of replicas answers within {goal} s")
    while low < high:
        middle = (low + high) // 2
        if middle in tried or is_enough(middle):
            high = middle
        else:
            low = middle + 1
    return high, {**tried[high], "busy": rate / one / high}

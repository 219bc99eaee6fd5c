"""Which replica of a fleet gets a request. A policy is called with the replicas and the request: see simulate."""

import random
import zlib

_ROOM = 1.25  # the load of a replica, as a multiple of the mean, up to which requests of one prefix stay together


class RoundRobin:
    """One after the other."""

    def __init__(self, seed=0):
        self._next = seed

    def __call__(self, fleet, arrival):
        """The number of the next replica."""
        self._next += 1
        return self._next % len(fleet)


class Random:
    """Any of them. Many dispatchers that know nothing of each other do about this."""

    def __init__(self, seed=0):
        self._random = random.Random(seed)

    def __call__(self, fleet, arrival):
        """The number of a random replica."""
        return self._random.randrange(len(fleet))


class LeastRequests:
    """The replica with the fewest requests, running and waiting ones; of equal ones any."""

    def __init__(self, seed=0):
        self._random = random.Random(seed)

    def __call__(self, fleet, arrival):
        """The number of the replica."""
        loads = [replica.active for replica in fleet]
        least = min(loads)
        return self._random.choice([number for number, load in enumerate(loads) if load == least])


class ShortestQueue:
    """The replica where the fewest requests wait for their first token; then the one with the fewest in all."""

    def __init__(self, seed=0):
        self._random = random.Random(seed)

    def __call__(self, fleet, arrival):
        """The number of the replica."""
        loads = [(replica.queued, replica.active) for replica in fleet]
        least = min(loads)
        return self._random.choice([number for number, load in enumerate(loads) if load == least])


class BestOfTwo:
    """The one with fewer requests of two random replicas."""

    def __init__(self, seed=0):
        self._random = random.Random(seed)

    def __call__(self, fleet, arrival):
        """The number of the replica."""
        first = self._random.randrange(len(fleet))
        second = self._random.randrange(len(fleet))
        return first if fleet[first].active <= fleet[second].active else second


class PrefixAffinity:
    """The replica that a prefix belongs to; where it has a quarter more than the mean load, the next ones after it.

    Requests without a prefix go where the fewest requests are.
    """

    def __init__(self, seed=0):
        self._others = LeastRequests(seed)

    def __call__(self, fleet, arrival):
        """The number of the replica."""
        if arrival.prefix is None:
            return self._others(fleet, arrival)
        most = _ROOM * (sum(replica.active for replica in fleet) + 1) / len(fleet)
        home = zlib.crc32(str(arrival.prefix).encode()) % len(fleet)
        for number in (*range(home, len(fleet)), *range(home)):
            if fleet[number].active + 1 <= max(most, 1):
                return number
        return home


POLICIES = {
    "random": Random,
    "round robin": RoundRobin,
    "best of two": BestOfTwo,
    "least requests": LeastRequests,
    "shortest queue": ShortestQueue,
    "prefix affinity": PrefixAffinity,
}

"""Which replica of a fleet gets a request. A policy is called with the replicas and the request: see simulate."""

import random
import zlib

_ROOM = 1.25  # the load of such a replica, as a multiple of the mean
_MOST_WAITING = 1  # requests without a first token, at a replica that gets another one for its prefix


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
        loads = [self.load(replica) for replica in fleet]
        least = min(loads)
        return self._random.choice([number for number, load in enumerate(loads) if load == least])

    def load(self, replica):
        """What is compared."""
        return replica.active


class ShortestQueue(LeastRequests):
    """The replica where the fewest requests wait for their first token; then the one with the fewest in all."""

    def load(self, replica):
        """What is compared."""
        return replica.queued, replica.active


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
    """The replica that a prefix belongs to, or the one after it; where both are busy, as by the shortest queue.

    Busy is a replica in which two requests wait for their first token, or which has a quarter more than the mean load.
    Requests without a prefix go by the shortest queue, too.
    """

    def __init__(self, seed=0):
        self._others = ShortestQueue(seed)

    def __call__(self, fleet, arrival):
        """The number of the replica."""
        if arrival.prefix is not None:
            most = _ROOM * sum(replica.active for replica in fleet) / len(fleet)
            home = zlib.crc32(str(arrival.prefix).encode()) % len(fleet)
            for number in (home, (home + 1) % len(fleet)):
                if fleet[number].queued <= _MOST_WAITING and fleet[number].active <= most:
                    return number
        return self._others(fleet, arrival)


POLICIES = {
    "random": Random,
    "round robin": RoundRobin,
    "best of two": BestOfTwo,
    "least requests": LeastRequests,
    "shortest queue": ShortestQueue,
    "prefix affinity": PrefixAffinity,
}

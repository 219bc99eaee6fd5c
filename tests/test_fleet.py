"""benchmarks/fleet.py's simulator against cases that are computed by hand or in closed form. Nothing is measured."""

import random
import statistics
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # the scripts import each other by name
from fleet_machine import Grid, Machine, floor_machine
from fleet_policies import POLICIES
from fleet_simulator import Arrival, simulate
from fleet_sizing import Workload, capacity, figures, replicas_for


def machine(slots=2, chunk=256, joins=False, blocks=0, max_queue=float("inf"), prefill=1.0, decode=0.5):
    """A replica whose steps take the same time, whatever is in them."""
    return Machine(
        "constant", slots, chunk, joins, False, 256, blocks, lambda tokens, past: prefill, lambda rows, context: decode,
        max_queue,
    )  # fmt: skip


def run(machine, *arrivals, replicas=1, policy="round robin"):
    return simulate(machine, replicas, arrivals, POLICIES[policy]())


def poisson(rate, count, **more):
    draw = random.Random(0)
    time = 0.0
    found = []
    for _ in range(count):
        time += draw.expovariate(rate)
        found.append(Arrival(time, **more))
    return found


def test_batch_server_by_hand():
    # Two slots. Step 1 prefills a and decodes it (0 to 1.5). Step 2 prefills b, whose first token comes at 2.5, and
    # decodes both (to 3.0): a has its 3 tokens. Step 3 admits and prefills c (first token at 4.0), and decodes b and c
    # (to 4.5): both end.
    a, b, c = run(machine(), *(Arrival(0.0, 10, new) for new in (3, 3, 2)))
    assert (a.first, a.end) == (1.0, 3.0)
    assert (b.first, b.end) == (2.5, 4.5)
    assert (c.first, c.end) == (4.0, 4.5)
    assert a.pace == 1.0 and c.wait == 4.0


def test_last_token_of_a_prompt_is_decoded_with_the_others():
    # The first token comes with the step's end, not with the chunk's.
    a, b = run(machine(joins=True), Arrival(0.0, 10, 2), Arrival(0.2, 1, 1))
    assert (a.first, a.end) == (1.5, 3.0)  # the second step prefills b: a prompt of one token is not divided
    assert (b.first, b.end) == (2.5, 2.5)


def test_a_long_prompt_runs_in_chunks_between_which_others_decode():
    # b has 600 tokens: chunks of 256, 256 and 88. a decodes after each.
    a, b = run(machine(), Arrival(0.0, 10, 10), Arrival(0.1, 600, 1))
    assert a.first == 1.0
    assert b.first == 1.5 + 2 * 1.5 + 1.0


def test_idle_rows_run_along_and_ranks_close():
    # The times of the steps tell how many rows were run: one second a row.
    rows = Machine("rows", 4, 256, True, True, 256, 0, lambda tokens, past: 0.0, lambda rows, context: float(rows))
    # a ends in the first step of both. b, in slot 1, is a lone row then, and has an idle partner.
    a, b = run(rows, Arrival(0.0, 9, 2), Arrival(0.0, 9, 3))
    assert (a.end, b.end) == (2 + 2, 2 + 2 + 2 + 2)
    # Four sequences, of which the first three end after b has joined: the last one's row is 3, so 1 row + 1.
    *_, last = run(rows, *(Arrival(0.0, 9, new) for new in (4, 3, 2, 2)))
    assert last.end == 2 + 2 + 4 + 4 + 2


def test_context_grows_with_every_token():
    slope = Machine("slope", 1, 256, False, False, 256, 0, lambda tokens, past: 0.0, lambda rows, context: context)
    (only,) = run(slope, Arrival(0.0, 100, 4))
    assert only.end == 100 + 101 + 102


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_mean_wait_of_one_slot_is_that_of_m_d_1(load):
    # One token for each request: the service takes 1 s, and the wait for it is load / (2 (1 - load)) on average.
    outcomes = simulate(machine(slots=1), 1, poisson(load, 15_000, prompt=10, new_tokens=1), POLICIES["random"]())
    assert statistics.fmean(outcome.wait for outcome in outcomes) - 1 == pytest.approx(
        load / (2 * (1 - load)), rel=0.08
    )


def test_every_request_ends_once():
    arrivals = Workload(prefixes=20, prefix_tokens=300).arrivals(30, 1)[:300]
    for name, policy in POLICIES.items():
        outcomes = simulate(machine(4, joins=True, blocks=8, prefill=0.02, decode=0.01), 5, arrivals, policy())
        assert [outcome.arrival for outcome in outcomes] == arrivals, name
        for outcome in outcomes:
            assert outcome.arrival.time < outcome.first <= outcome.end
            # No token takes less than a step.
            assert outcome.end - outcome.first >= 0.0099 * (outcome.arrival.new_tokens - 1)


def test_full_queue_refuses_and_the_others_are_served():
    outcomes = run(machine(slots=1, max_queue=1), *(Arrival(0.0, 10, 2) for _ in range(4)), Arrival(2.0, 10, 2))
    assert [outcome.refused for outcome in outcomes] == [False, False, True, True, False]
    assert [outcome.end for outcome in outcomes if not outcome.refused] == [1.5, 3.0, 4.5]


def test_least_requests_waits_less_than_round_robin_and_round_robin_less_than_random():
    # With lengths that differ: where all are equal, no policy is better than round robin.
    draw = random.Random(1)
    arrivals = [Arrival(each.time, 10, draw.randint(1, 19)) for each in poisson(3.2, 2500, prompt=10, new_tokens=1)]
    replica = machine(slots=1, prefill=0.1, decode=0.1)
    waits = {
        name: figures(simulate(replica, 4, arrivals, POLICIES[name]()), 0)["first_token_p99_ms"]
        for name in ("random", "round robin", "best of two", "least requests")
    }
    assert waits["least requests"] < waits["round robin"] < waits["random"]
    assert waits["least requests"] < waits["best of two"] < waits["random"]


def test_shortest_queue_looks_at_prompts_and_least_requests_at_all_requests():
    # The first replica decodes two long texts. The second one has a single request, whose prompt is being run.
    running = [Arrival(0.0, 10, 90), Arrival(0.0, 9999, 1), Arrival(0.1, 10, 90)]
    for policy, replica in (("shortest queue", 0), ("least requests", 1)):
        chosen = POLICIES[policy]()
        numbers = iter([0, 1, 0])

        def choose(fleet, arrival, chosen=chosen, numbers=numbers):
            return next(numbers) if arrival.time < 8 else chosen(fleet, arrival)

        outcomes = simulate(machine(slots=4), 2, [*running, Arrival(8.0, 10, 1)], choose)
        assert outcomes[-1].replica == replica, policy


def test_prefix_affinity_computes_less_of_the_prompts():
    # Each cache holds two prefixes of the eight; four replicas hold all of them only if they keep apart.
    arrivals = poisson(0.5, 800, prompt=600, new_tokens=1)
    arrivals = [Arrival(each.time, 600, 1, number % 8, 512) for number, each in enumerate(arrivals)]
    reused = {
        name: figures(simulate(machine(blocks=4), 4, arrivals, POLICIES[name]()), 0)["reused"] for name in POLICIES
    }
    assert reused["prefix affinity"] > 0.5 > 0.35 > reused["random"]


def test_known_blocks_of_a_prompt_are_not_run():
    # 600 tokens of which 512 are shared: three chunks the first time, then one. Another prefix is not known.
    first, second, other = run(
        machine(slots=1, blocks=8),
        *(Arrival(at, 600, 1, prefix, 512) for at, prefix in ((0.0, 1), (10.0, 1), (20.0, 2))),
    )
    assert (first.wait, second.wait, other.wait) == (3.0, 1.0, 3.0)
    assert (first.reused, second.reused, other.reused) == (0, 512, 0)


def test_grid_is_linear_between_points_and_beyond_them():
    grid = Grid([1, 3], [0, 10], [[1.0, 2.0], [3.0, 6.0]])
    assert grid(1, 0) == 1 and grid(3, 10) == 6
    assert grid(2, 5) == 3.0
    assert grid(5, 10) == 10.0 and grid(1, 20) == 3.0
    assert Grid([4], [0, 10], [[1.0, 2.0]])(7, 5) == 1.5


def test_sizing_finds_the_least_number():
    # One token each, 0.1 s of work, 1 slot: 10 requests a second for each replica.
    one = machine(slots=1, prefill=0.1)
    assert capacity(one, [(10, 1)] * 10) == pytest.approx(10, rel=0.02)
    workload = Workload((10, 11), (1, 1))
    count, row = replicas_for(one, workload, 35, POLICIES["least requests"], 0.5, 10)
    assert row["first_token_p99_ms"] <= 500 and 4 <= count <= 5  # 35 of 40 or of 50: at most 95 %
    arrivals = workload.arrivals(35, 10)
    fewer = figures(simulate(one, count - 1, arrivals, POLICIES["least requests"]()), 0.25 * arrivals[-1].time)
    assert fewer["first_token_p99_ms"] > 500


def test_floor_of_a_machine_by_hand():
    # 1000 parameters of 2 bytes; caches of 400 bytes for 10 tokens in 4 bytes a number, so 20 for each token in 2.
    model = {"parameters": 1000, "cache_bytes_per_sequence": 400, "n_ctx": 10}
    floor = floor_machine("paper", model, slots=4, bandwidth=1e6, compute=1e7)
    assert floor.decode(4, 5) == pytest.approx((2000 + 4 * 5 * 20) / 1e6)  # its bytes take longer than its arithmetic
    assert floor.prefill(100, 0) == pytest.approx(100 * 2000 / 1e7)  # and here the arithmetic takes longer

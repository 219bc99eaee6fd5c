"""Many requests of all kinds through one service: is memory flat, is every slot free again, is none stuck?

    python benchmarks/soak.py MODEL --requests 10000

MODEL is an ONNX folder; a small one will do. Prints resident memory as requests end, and fails where it grew by more
than --tolerance after the first 500, or where anything is left in the engine.
"""

import argparse
import random
import sys
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import Engine
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.engine.service import Service
from neo_tf.runtime.sampling.beams import BeamOptions
from neo_tf.runtime.sampling.options import SamplingOptions

WARM = 500  # requests after which memory must not grow
_PATIENCE = 120  # seconds without any request's end: it is stuck


def resident_bytes():
    """Memory of this process that is resident now."""
    fields = Path("/proc/self/status").read_text().split()
    return int(fields[fields.index("VmRSS:") + 1]) * 1024


def random_request(rng, config):
    """A request of any kind, on one of a few beginnings."""
    shared = rng.randrange(min(300, config.n_ctx // 2))
    beginning = random.Random(rng.randrange(5))
    prompt = [beginning.randrange(config.n_vocab) for _ in range(shared)]
    prompt += [rng.randrange(config.n_vocab) for _ in range(rng.randint(1, 20))]
    kind = rng.choice(["greedy", "drawn", "drawn", "lookup", "beams", "logprobs"])
    return Request(
        prompt,
        max_new_tokens=rng.randint(1, 40),
        stop_token_ids=(rng.randrange(config.n_vocab),),
        sampling=SamplingOptions(
            do_sample=kind == "drawn",
            top_k=rng.choice([0, 50]),
            top_p=rng.choice([1.0, 0.9]),
            seed=rng.randrange(1000),
            repetition_penalty=rng.choice([1.0, 1.2]),
        ),
        prompt_lookup_num_tokens=5 if kind == "lookup" else None,
        beams=BeamOptions(rng.randint(2, 4)) if kind == "beams" else None,
        logprobs=3 if kind == "logprobs" else None,
    )


def soak(folder, count, seed=0, slots=8, report=print):
    """Runs so many requests, a tenth of them cancelled on the way.

    Args:
        folder: an ONNX folder.
        count: requests.
        seed: of what they are.
        slots: sequences at once.
        report: called with a line, each time another 500 have ended.

    Returns:
        {"ended", "cancelled", "free_slots", "resident": [(requests, bytes)]}.

    Raises:
        TimeoutError: nothing ends any more.
    """
    engine, rng = Engine(Session(folder, slots=slots)), random.Random(seed)
    found = {"ended": 0, "cancelled": 0, "resident": []}
    with Service(engine) as service:
        running, made = set(), 0
        while made < count or running:
            while made < count and len(running) < 3 * slots:
                submission = service.submit(random_request(rng, engine.config))
                running.add(submission)
                made += 1
                if rng.random() < 0.1:
                    submission.cancel()
            done, running = wait(running, _PATIENCE, FIRST_COMPLETED)
            if not done:
                raise TimeoutError(f"{len(running)} requests are stuck")
            for future in done:
                found["ended"] += 1
                found["cancelled"] += future.result().finish_reason == "cancelled"
                if found["ended"] % WARM == 0:
                    found["resident"].append((found["ended"], resident_bytes()))
                    report(f"{found['ended']} requests: {found['resident'][-1][1] / 1e6:.1f} MB resident")
    found["free_slots"] = engine.slots.free
    return found


def main():
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--tolerance", type=float, default=5.0, help="MB that memory may grow by (5)")
    arguments = parser.parse_args()
    found = soak(arguments.model, arguments.requests, slots=arguments.slots)
    sizes = [size for _, size in found["resident"]]
    growth = (max(sizes) - sizes[0]) / 1e6
    print(f"{found['ended']} ended, {found['cancelled']} of them cancelled; {found['free_slots']} of {arguments.slots}")
    print(f"slots free; memory grew by {growth:.1f} MB after the first {WARM}")
    if found["free_slots"] != arguments.slots or growth > arguments.tolerance:
        sys.exit(1)


if __name__ == "__main__":
    main()

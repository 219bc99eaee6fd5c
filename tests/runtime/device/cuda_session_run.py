"""What a Session does with ONNX Runtime's own CUDA provider, without a GPU: `python cuda_session_run.py`.

    python cuda_session_run.py DUMMY_CUDA FOLDER

DUMMY_CUDA is what dummy_cuda.build made. The last line is JSON with what happened; the numbers mean nothing.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[2]))
import dummy_cuda
import numpy as np

from neo_tf.errors import NeoTFError
from neo_tf.runtime.device.cudart import Cudart
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import Engine
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.sampling.options import BeamOptions

cuda = dummy_cuda.load(sys.argv[1])
folder = Path(sys.argv[2])


def events(run, log):
    """What CUDA is asked for in a run, as [(event, detail)]."""
    cuda.dummy_cuda_log(str(log).encode())
    try:
        run()
    finally:
        cuda.dummy_cuda_log(None)
    return [(event, detail) for event, _, detail in (line.split(" ", 2) for line in log.read_text().splitlines())]


def refused(**options):
    """What a session that cannot start says."""
    try:
        Session(folder, **options)
    except NeoTFError as error:
        return f"{type(error).__name__}: {error}"
    return None


def main(log):
    found = {"no such GPU": refused(device="cuda:1"), "too many slots": refused(slots=10**7)}
    session = Session(folder, slots=4)
    found["buckets"], found["graphs"] = session.buckets, session.graphs
    found["warm-up"] = Counter(event for event, _ in events(session.warm_up, log))

    def step():
        return session.decode(0, np.zeros(4, int), np.zeros(4, int))

    found["step"] = events(step, log)
    decoded = step()
    found["logits"] = events(lambda: decoded.logits(2), log)
    found["prompt"] = Counter(event for event, _ in events(lambda: session.prefill(0, np.arange(90), 0, 0), log))
    engine = Engine(session)
    requests = [Request([1, 2, 3] * 50, 9, prompt_lookup_num_tokens=4), Request([1], 5), Request([2, 3], 4)]
    requests.append(Request([5, 6], 6, beams=BeamOptions(3)))
    free = []
    for _ in range(8):
        found["tokens"] = [len(generation.tokens) for generation in engine.generate(requests)]
        free.append(Cudart(0).free_memory())
    found["free"] = free
    print(json.dumps(found))


with TemporaryDirectory() as temporary:
    main(Path(temporary) / "log")

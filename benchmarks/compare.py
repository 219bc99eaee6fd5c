"""Decode and prefill speed of neo-tf against Optimum's export on ONNX Runtime: interleaved, in one run, as ratios.

    python benchmarks/compare.py ONNX_DIR HF_DIR --peer-python PEERS/bin/python [--rounds 5]

PEERS is a virtual environment with `torch` and `optimum-onnx[onnxruntime]`; HF_DIR holds the same model as ONNX_DIR in
Hugging Face's format and is exported by Optimum into a temporary folder, unless --peer-dir names an export. Each system
runs in a process of its own and answers one task at a time; the other one is idle meanwhile.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

PROMPT, NEW, PREFILL = 32, 128, 1024


class Ours:
    """neo-tf's runtime."""

    def __init__(self, folder, threads):
        from runtime.engine import Engine, Request
        from runtime.session import Session

        self.request, self.session = Request, Session(folder, threads=threads)
        self.engine = Engine(self.session)

    def generate(self, prompt, count):
        """Greedy continuation, as token ids."""
        request = self.request(prompt, max_new_tokens=count)
        self.engine.generate([request])
        return request.tokens


class Optimum:
    """Optimum's ORTModelForCausalLM."""

    def __init__(self, folder, threads):
        import onnxruntime
        import torch
        from optimum.onnxruntime import ORTModelForCausalLM

        options = onnxruntime.SessionOptions()
        if threads:
            options.intra_op_num_threads = threads
        torch.set_num_threads(threads or torch.get_num_threads())
        self.torch, self.model = torch, ORTModelForCausalLM.from_pretrained(folder, session_options=options)

    def generate(self, prompt, count):
        """Greedy continuation, as token ids."""
        ids = self.torch.tensor([prompt])
        mask = self.torch.ones_like(ids)
        out = self.model.generate(
            ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
        )
        return out[0, len(prompt) :].tolist()


def work(system, folder, threads):
    """Answers tasks {"prompt", "count"} on standard input with {"seconds", "tokens"}, one line each."""
    model = {"ours": Ours, "optimum": Optimum}[system](folder, threads)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        start = time.perf_counter()
        tokens = model.generate(task["prompt"], task["count"])
        print(json.dumps({"seconds": time.perf_counter() - start, "tokens": tokens}), flush=True)


class Worker:
    """A system in its own process."""

    def __init__(self, python, system, folder, threads):
        command = [python, __file__, "--worker", system, str(folder), "", "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def run(self, prompt, count):
        """Seconds and tokens of one generation."""
        self.process.stdin.write(json.dumps({"prompt": prompt, "count": count}) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        return answer["seconds"], answer["tokens"]

    def _answer(self):
        for line in self.process.stdout:
            if line.startswith(("{", '"ready')):
                return json.loads(line)
        raise SystemExit("a worker ended early")


def memory_bandwidth(threads=2, megabytes=240, repeats=5):
    """Bytes per second that so many threads read together."""
    data = np.ones(megabytes * 250_000, np.float32).reshape(threads, -1)

    def read(part):
        for _ in range(repeats):
            part.max()

    workers = [threading.Thread(target=read, args=(part,)) for part in data]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return repeats * data.nbytes / (time.perf_counter() - start)


def main():
    """Parses, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ours")
    parser.add_argument("huggingface")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--peer-dir", help="an export that Optimum made before")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--worker", choices=("ours", "optimum"))
    options = parser.parse_args()
    if options.worker:
        return work(options.worker, options.ours, options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        peer_dir = options.peer_dir or export_peer(options.peer_python, options.huggingface, scratch)
        return compare(options, peer_dir)


def export_peer(python, source, target):
    """Lets Optimum export the model."""
    code = (
        "import sys; from optimum.exporters.onnx import main_export as e; e(sys.argv[1], sys.argv[2], task=sys.argv[3])"
    )
    subprocess.run([python, "-c", code, source, target, "text-generation-with-past"], check=True, capture_output=True)
    return target


def compare(options, peer_dir):
    """Runs both systems in turn and prints the ratios."""
    ours = Worker(sys.executable, "ours", options.ours, options.threads)
    peer = Worker(options.peer_python, "optimum", peer_dir, options.threads)
    prompt = np.random.default_rng(0).integers(0, 50000, PREFILL).tolist()
    for worker in (ours, peer):
        worker.run(prompt[:PROMPT], 8)
    rows, bandwidth, same = {"decode": [], "prefill": []}, [], True
    for _ in range(options.rounds):
        decode = [worker.run(prompt[:PROMPT], NEW) for worker in (ours, peer)]
        same &= decode[0][1] == decode[1][1]
        rows["decode"].append([seconds for seconds, _ in decode])
        rows["prefill"].append([worker.run(prompt, 1)[0] for worker in (ours, peer)])
        bandwidth.append(memory_bandwidth())
    print(f"{'':24}{'neo-tf':>10}{'Optimum':>10}{'ratio':>8}   (medians of {options.rounds}; ratio of each pair)")
    for name, pairs in rows.items():
        mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        if name == "decode":
            print(f"decode {PROMPT}+{NEW}, tokens/s {NEW / mine:>10.1f}{NEW / theirs:>10.1f}{ratio:>8.2f}")
            per_token = mine / NEW
        else:
            print(f"prefill {PREFILL}, ms       {mine * 1e3:>10.0f}{theirs * 1e3:>10.0f}{ratio:>8.2f}")
    weights = (Path(options.ours) / "model.onnx_data").stat().st_size
    config = json.loads((Path(options.ours) / "config.json").read_text())
    weights -= 4 * config["hidden_size"] * config["max_position_embeddings"]  # of wpe, a token reads one row
    speed = statistics.median(bandwidth)
    print(f"same tokens: {same}; memory {speed / 1e9:.1f} GB/s; floor {weights / speed * 1e3:.2f} ms a token,", end=" ")
    print(f"reached {weights / speed / per_token:.0%} (prefill of the prompt included)")
    return 0


if __name__ == "__main__":
    sys.exit(main())

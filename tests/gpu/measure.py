"""Measures a published shape on a GPU: neo-tf in fp16 and int8, beside transformers, and Optimum where it is installed.

    python measure.py SIZE FOLDER --result FILE

FOLDER is what prepare.py made. neo-tf is measured by `neo-tf benchmark`; the others decode the same number of tokens,
and each runs in a process of its own.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from result import Result

PRECISIONS = ("fp16", "int8")
BATCHES = (1, 8, 32)
PROMPT_TOKENS = 32
NEW_TOKENS = 128
_COPIED = 2**30  # bytes of a copy that measures the memory's bandwidth


def bandwidth():
    """The bytes a second that a copy within the GPU's memory reads and writes; the best of some."""
    import torch

    source = torch.empty(_COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return 2 * _COPIED / min(times)


def benchmark(folder, precision):
    """What `neo-tf benchmark` measures of a folder on CUDA."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "figures.json"
        command = [
            sys.executable,
            "-m",
            "neo_tf",
            "benchmark",
            str(folder),
            "--precision",
            precision,
            "--device",
            "cuda",
        ]
        command += ["--batches", ",".join(map(str, BATCHES)), "--prefills", "512", "--contexts", "32,1500"]
        command += ["--prompt-tokens", str(PROMPT_TOKENS), "--new-tokens", str(NEW_TOKENS)]
        subprocess.run([*command, "--rounds", "1", "--json", str(file)], check=True, stdout=subprocess.DEVNULL)
        return json.loads(file.read_text())


def figures_of(found, read_per_second):
    """The figures of the report: of one sequence, of batches, and the share of the time to read the weights.

    Args:
        found: What `neo-tf benchmark` measured.
        read_per_second: The bytes that the GPU's memory gives each second.
    """
    token = found["decode"]["ms_per_token"]
    read = found["model"]["bytes_per_token"] / read_per_second * 1e3
    return {
        "ms_per_token": token,
        "tokens_per_s": found["decode"]["tokens_per_s"],
        "first_token_ms": found["decode"]["first_token_ms"],
        "read_ms": read,
        "times_the_read": token / read,
        "batches": {str(batch["batch"]): batch["tokens_per_s"] for batch in found["batch"]},
        "prefill_512_ms": found["prefill"][0]["ms"],
    }


def peer(name, *arguments):
    """What a peer measures in a process of its own: {"tokens_per_s", "batches"}; see peers.py."""
    command = [sys.executable, str(Path(__file__).with_name("peers.py")), name, *map(str, arguments)]
    command += [",".join(map(str, BATCHES)), str(PROMPT_TOKENS), str(NEW_TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("size")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--result", type=Path, required=True, help="the file that the result is written to")
    arguments = parser.parse_args()
    size = arguments.size
    result = Result()
    speed = bandwidth()
    result.figures["bytes_per_s"] = speed
    result.note(f"the GPU's memory copies {speed / 1e12:.2f} TB/s")
    for precision in PRECISIONS:
        found = figures_of(benchmark(arguments.folder, precision), speed)
        result.figures[f"neo-tf {precision}"] = found
        result.check(f"neo-tf benchmark of {size} in {precision}", None)
        result.note(
            f"{size} {precision}: {found['ms_per_token']:.2f} ms a token, {found['times_the_read']:.2f} times the read"
        )
    found = result.figures["transformers fp16"] = peer("transformers", size)
    result.check(f"transformers on CUDA at {size}", None)
    result.note(f"{size} transformers: {found['tokens_per_s']:.1f} tokens/s")
    if size == "125M":
        if importlib.util.find_spec("optimum") is None:
            result.note("Optimum was not measured: it is not installed here")
        else:
            result.figures["optimum fp16"] = peer("optimum", arguments.folder)
            result.check("Optimum on CUDA at 125M", None)
    return result.end(arguments.result)


if __name__ == "__main__":
    sys.exit(main())

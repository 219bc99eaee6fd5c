"""Sends the cases that schemathesis makes of the server's OpenAPI schema to a real server. `make server-fuzz` runs it.

A case fails that is answered with a 5xx, against the schema (status, content type, body), or not within the time limit.
At the end every slot must be free, the queue empty, and a text the same as before the first case.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCHEMATHESIS = HERE.parents[1] / ".peers/schemathesis/bin/schemathesis"
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
SECONDS = 20  # that an answer may take
# The share of cases that each operation with a body gets; others share what is left.
WEIGHTS = {"/v1/completions": 5, "/v1/chat/completions": 3, "/generate": 3, "/generate_stream": 3}
WITHOUT_BODY = 0.002  # of the cases, for each
# What the server takes and refuses is not all in the schema: lengths and ids depend on the model.
# The page at / is not in it, either, so that GET and HEAD are answered there.
NOT_CHECKED = "positive_data_acceptance,negative_data_rejection,unsupported_method,allow_header_conformance"
PROMPT = {"prompt": "def read_lines(path):", "max_tokens": 24, "temperature": 0.9, "seed": 11}


def ask(url, body=None):
    """The bytes of an answer, which must be a 200."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return answer.read()


def text_of(url):
    """A text that must stay as it is."""
    return json.loads(ask(f"{url}/v1/completions", PROMPT))["choices"][0]["text"]


def gauges(url):
    """{metric: value} of those without labels."""
    lines = ask(f"{url}/metrics").decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#") and "{" not in line)
    return {name: float(value) for name, _, value in pairs}


def resident(process):
    """The resident memory of a process, in MB; None where /proc does not say."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return None
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


def config_of(schema, cases):
    """schemathesis' configuration: how many cases each operation gets."""
    weights = {}
    others = []
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            name = f"{method.upper()} {path}"
            if "requestBody" in operation:
                weights[name] = WEIGHTS.get(path, 1)
            else:
                others.append(name)
    few = max(1, round(cases * WITHOUT_BODY))
    left = max(cases - few * len(others), len(weights))
    share = left / sum(weights.values())
    counts = {name: max(1, round(share * weight)) for name, weight in weights.items()} | dict.fromkeys(others, few)
    parts = [
        f"[[operations]]\ninclude-name = {json.dumps(name)}\ngeneration.max-examples = {counts[name]}\n"
        for name in counts
    ]
    return "\n".join(parts)


def start(url, schema, folder, number, mode, phases, cases, seed):
    """Starts schemathesis.

    Returns:
        The process, its output's file and the file of the counts.
    """
    config = folder / f"{number}.toml"
    config.write_text(config_of(schema, cases))
    output = folder / f"{number}.out"
    counts = folder / f"{number}.json"
    environment = os.environ | {
        "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
        "PYTHONPATH": str(HERE),
        "NEO_TF_FUZZ_COUNTS": str(counts),
    }
    command = [SCHEMATHESIS, "--config-file", config, "run", f"{url}/openapi.json", "--phases", phases, "--mode", mode]
    command += ["--exclude-checks", NOT_CHECKED, "--request-timeout", SECONDS, "--no-shrink", "--continue-on-failure"]
    command += ["--suppress-health-check", "all", "--warnings", "off", "--seed", seed]
    with output.open("wb") as file:
        process = subprocess.Popen(
            list(map(str, command)), stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder
        )
    return process, output, counts


def fuzz(url, cases, seed, report):
    """Sends the cases.

    Returns:
        {"OPERATION status": number of answers}, and the outputs of the runs that found something.
    """
    schema = json.loads(ask(f"{url}/openapi.json"))
    plans = [
        ("positive", "fuzzing", cases * 2 // 5),
        ("positive", "fuzzing", cases * 2 // 5),
        ("negative", "fuzzing", cases // 5),
    ]
    if cases >= 10_000:
        plans.append(("all", "coverage,stateful", cases // 100))
    answers = collections.Counter()
    failures = []
    with tempfile.TemporaryDirectory() as scratch:
        runs = [start(url, schema, Path(scratch), number, *plan, seed + number) for number, plan in enumerate(plans)]
        for process, output, counts in runs:
            while process.poll() is None:
                time.sleep(0.2)
            if counts.exists():
                answers.update(json.loads(counts.read_text()))
            if process.returncode or not counts.exists():
                failures.append(output.read_text(encoding="utf-8", errors="replace"))
            report(f"{sum(answers.values())} cases answered")
    return answers, failures


def check(url, before):
    """What is wrong with the server after the cases: a list of lines."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found = gauges(url)
        busy = [name for name in ("slots_in_use", "queue", "active_sequences") if found[f"neo_tf_{name}"]]
        if not busy:
            break
        time.sleep(0.1)
    wrong = [f"{name} is {found[f'neo_tf_{name}']:g} at the end" for name in busy]
    if found["neo_tf_engine_up"] != 1:
        wrong.append("the engine has stopped")
    if text_of(url) != before:
        wrong.append("a text is not the same as before")
    return wrong


def run(folder, cases, seed, report=print):
    """Starts a server and sends the cases.

    Args:
        folder: The ONNX folder.
        cases: The number of cases, about.
        seed: Of schemathesis.
        report: Is told of the progress, a line each.

    Returns:
        {"OPERATION status": number of answers}, and what is wrong, a list of texts.
    """
    with tempfile.TemporaryDirectory() as scratch:
        template = Path(scratch) / "chat.jinja"
        template.write_text(TEMPLATE)
        command = [sys.executable, "-m", "neo_tf.cli", "serve", folder, "--port", "0", "--slots", "8", "--threads", "1"]
        command += ["--model-name", "demo", "--alias", "tiny-python", "--chat-template", template]
        log = Path(scratch) / "log"
        with log.open("wb") as file:
            server = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=file, text=True)
        try:
            url = server.stdout.readline().split()[-1]
            before = text_of(url)
            memory = resident(server)
            answers, wrong = fuzz(url, cases, seed, report)
            wrong += check(url, before)
            wrong += [name for name in answers if name.endswith(" 424")]  # Text Generation Inference's 500
            report(f"resident memory: {memory} MB before, {resident(server)} MB after")
        finally:
            server.terminate()
            server.wait(SECONDS)
        if "NEO_TF_FUZZ_LOG" in os.environ:
            Path(os.environ["NEO_TF_FUZZ_LOG"]).write_bytes(log.read_bytes())
        wrong += [
            line for line in log.read_text(errors="replace").splitlines() if "Traceback" in line or "ERROR" in line
        ]
    return answers, wrong


def main():
    """Runs the cases, and says what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an exported ONNX folder")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    begin = time.monotonic()
    answers, wrong = run(chosen.folder, chosen.cases, chosen.seed, lambda line: print(line, flush=True))
    for name, count in sorted(answers.items()):
        print(f"{count:7} {name}")
    total = sum(answers.values())
    served = sum(count for name, count in answers.items() if name.rpartition(" ")[2].startswith("2"))
    print(f"{total} cases in {time.monotonic() - begin:.0f} s, {served / max(total, 1):.0%} of them answered with 2xx")
    for text in wrong:
        print(text)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

"""lm-evaluation-harness, unmodified, scores through the server; transformers' own model judges the scores."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import torch
from peer_helpers import peer
from server_helpers import running_server

TASK = Path(__file__).parents[2] / "portable/lm_eval"


def harness(url, tmp_path):
    """[(context, continuation, log-likelihood, is_greedy)] of the task in this repository."""
    program = peer("lm-eval") / "bin/lm_eval"
    model = f"model=demo,base_url={url}/v1/completions,max_length=512,num_concurrent=4"
    command = [program, "run", "--model", "local-completions", "--model_args", model, "--include_path", TASK]
    command += ["--tasks", "neo_tf_continuations", "--log_samples", "--output_path", tmp_path / "out"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=TASK, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = tmp_path.glob("out/*/samples_*.jsonl")
    scores = []
    for line in file.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        for number, [[log_likelihood, is_greedy]] in enumerate(sample["resps"]):
            asked = sample["arguments"][f"gen_args_{number}"]
            scores.append((asked["arg_0"], asked["arg_1"], float(log_likelihood), str(is_greedy) == "True"))
    return scores


def judged(model, tokenizer, context, continuation):
    """(log-likelihood, is_greedy) of a continuation by transformers' model, in float64 from its logits on."""
    ids = tokenizer.encode(context + continuation)
    begin = len(tokenizer.encode(context.rstrip()))  # the harness counts white space before it to the continuation
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]])).logits[0].double().numpy()[begin - 1 :]
    logits -= logits.max(-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    new = ids[begin:]
    return float(logprobs[range(len(new)), new].sum()), logprobs.argmax(-1).tolist() == new


def test_scores_are_the_models_own(demo_folder, judge, tmp_path):
    peer("lm-eval")
    with running_server(demo_folder) as running:
        scores = harness(running.url, tmp_path)
        tokenizer = running.serving.tokenizer
    assert len(scores) == 12
    for context, continuation, log_likelihood, is_greedy in scores:
        expected, greedy = judged(judge("tiny-python"), tokenizer, context, continuation)
        assert abs(log_likelihood - expected) < 1e-4, (context, continuation, log_likelihood, expected)
        assert is_greedy == greedy, (context, continuation)
    assert {is_greedy for *_, is_greedy in scores} == {False, True}

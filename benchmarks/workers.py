"""The systems that compare.py measures: one process each, which loads a model and answers one task at a time.

Run by the python of each system's own environment, so it imports nothing of neo-tf but in NeoTF.
"""

import functools
import json
import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version


class NeoTF:
    """neo-tf's engine."""

    packages = ("neo-tf", "onnxruntime-gpu", "onnxruntime")

    def __init__(self, folder, precision, threads, batch):
        from neo_tf.runtime.device.session import Session
        from neo_tf.runtime.engine.engine import Engine
        from neo_tf.runtime.engine.request import Request

        def load(slots):
            session = Session(folder, slots=slots, threads=threads or None, precision=precision)
            # Every round has the same prompts: none must be known from the one before.
            return Engine(session, prefix_cache_bytes=0)

        # One text at a time has an engine of one slot, as `neo-tf generate` has.
        self.request, self._load, self._batch = Request, functools.cache(load), batch
        self._load(batch)

    def generate(self, prompts, count, first):
        """Greedy continuations of prompts of one length, and the first token's time where it is asked for.

        Args:
            prompts: lists of token ids.
            count: new tokens of each.
            first: whether the time of the first token is wanted; of a single prompt alone.

        Returns:
            ([tokens, ...], seconds until the first token, or None).
        """
        start, times = time.perf_counter(), []
        clock = (lambda token: times.append(time.perf_counter() - start)) if first else None
        requests = [self.request(prompt, max_new_tokens=count, on_token=clock) for prompt in prompts]
        generations = self._load(1 if len(requests) == 1 else self._batch).generate(requests)
        return [generation.tokens for generation in generations], times[0] if times else None

    def serve(self, prompts, counts):
        """Greedy continuations of prompts of any lengths, all submitted at once.

        Args:
            prompts: lists of token ids.
            counts: new tokens of each.

        Returns:
            A list for each prompt: the seconds from the submission of all to each of its new tokens.
        """
        times, start = [[] for _ in prompts], time.perf_counter()
        requests = [
            self.request(prompt, max_new_tokens=count, on_token=_clock(start, own))
            for prompt, count, own in zip(prompts, counts, times, strict=True)
        ]
        self._load(self._batch).generate(requests)
        return times


def _clock(start, times):
    return lambda token: times.append(time.perf_counter() - start)


class Transformers:
    """transformers on PyTorch, eager."""

    packages = ("transformers", "torch")

    def __init__(self, folder, precision, threads, batch):
        import torch

        if threads:
            torch.set_num_threads(threads)
        self.torch = torch
        self.model = self.load(folder, precision, threads)
        self.model.generation_config.eos_token_id = None  # every continuation has its full length

    def load(self, folder, precision, threads):
        """The model, with transformers' generate."""
        from transformers import AutoModelForCausalLM

        dtype = {"fp32": self.torch.float32, "bf16": self.torch.bfloat16}[precision]
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def generate(self, prompts, count, first):
        """See NeoTF.generate."""
        ids, streamer = self.torch.tensor(prompts), _Streamer() if first else None
        settings = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0, "streamer": streamer}
        with self.torch.inference_mode():
            out = self.model.generate(ids, attention_mask=self.torch.ones_like(ids), **settings)
        return out[:, ids.shape[1] :].tolist(), streamer and streamer.times[1] - streamer.times[0]


class Optimum(Transformers):
    """Optimum's ORTModelForCausalLM."""

    packages = ("optimum", "optimum-onnx", "onnxruntime", "transformers", "torch")

    def load(self, folder, precision, threads):
        """See Transformers.load; the precision is that of the export."""
        import onnxruntime
        from optimum.onnxruntime import ORTModelForCausalLM

        options = onnxruntime.SessionOptions()
        if threads:
            options.intra_op_num_threads = threads
        return ORTModelForCausalLM.from_pretrained(folder, session_options=options)


class OpenVINO:
    """OpenVINO GenAI's LLMPipeline, with the backend that honours the local window."""

    packages = ("openvino", "openvino-genai")

    def __init__(self, folder, precision, threads, batch):
        import numpy
        import openvino
        import openvino_genai

        settings = {"ATTENTION_BACKEND": "SDPA"}  # the default one computes local layers as global ones
        # Left alone, it computes an fp32 model in bf16 where the CPU can, with an 8-bit cache; all others are at their
        # fastest left alone.
        if precision == "fp32":
            settings |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        elif precision == "bf16":
            settings["INFERENCE_PRECISION_HINT"] = "bf16"
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        self.numpy, self.openvino, self.genai = numpy, openvino, openvino_genai
        self.pipeline = openvino_genai.LLMPipeline(str(folder), "CPU", **settings)

    def generate(self, prompts, count, first):
        """See NeoTF.generate. The first token's time is its own figure: a streamer would slow the others down."""
        config = self.genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        ids = self.numpy.array(prompts, self.numpy.int64)
        inputs = self.genai.TokenizedInputs(self.openvino.Tensor(ids), self.openvino.Tensor(self.numpy.ones_like(ids)))
        out = self.pipeline.generate(inputs, config)
        return [list(tokens) for tokens in out.tokens], out.perf_metrics.get_ttft().mean / 1e3


class OpenVINOPaged:
    """OpenVINO GenAI's ContinuousBatchingPipeline. Its paged attention computes every layer as a global one."""

    packages = OpenVINO.packages

    def __init__(self, folder, precision, threads, batch):
        import numpy
        import openvino
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        # Its fastest: prompts are cut into chunks and share their steps with all that run.
        scheduler.dynamic_split_fuse, scheduler.max_num_batched_tokens, scheduler.max_num_seqs = True, 256, 256
        scheduler.cache_size, scheduler.enable_prefix_caching = 4, False  # GB: more than 64 requests take
        settings = {"INFERENCE_NUM_THREADS": threads} if threads else {}
        if precision == "fp32":  # see OpenVINO
            settings |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        self.numpy, self.openvino, self.genai = numpy, openvino, openvino_genai
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", settings)

    def serve(self, prompts, counts):
        """See NeoTF.serve. A step's tokens come when it ends."""
        handles, times, start = [], [[] for _ in prompts], time.perf_counter()
        for number, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
            config = self.genai.GenerationConfig()
            config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
            ids = self.openvino.Tensor(self.numpy.array([prompt], self.numpy.int64))
            handles.append(self.pipeline.add_request(number, ids, config))
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            now = time.perf_counter() - start
            for handle, own in zip(handles, times, strict=True):
                while handle.can_read():
                    own += [now for output in handle.read().values() for _ in output.generated_ids]
        return times


SYSTEMS = {
    "neo-tf": NeoTF,
    "transformers": Transformers,
    "optimum": Optimum,
    "openvino": OpenVINO,
    "openvino-paged": OpenVINOPaged,
}


class _Streamer:
    """What transformers calls with the prompt, just before it begins, and then with each new token."""

    def __init__(self):
        self.times = []

    def put(self, value):
        """Notes the time."""
        self.times.append(time.perf_counter())

    def end(self):
        """Called once at the end."""


def main(kind, folder, precision, threads, batch):
    """Loads, then answers tasks on standard input.

    {"prompts", "count", "first"} with {"seconds", "first", "tokens"}; {"prompts", "counts"} with {"times"}.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer
    system = SYSTEMS[kind](folder, precision, int(threads), int(batch))
    print(json.dumps({"versions": _versions(system.packages)}), file=answers, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        if "counts" in task:
            answer = {"times": system.serve(**task)}
        else:
            start = time.perf_counter()
            tokens, first = system.generate(**task)
            answer = {"seconds": time.perf_counter() - start, "first": first, "tokens": tokens}
        print(json.dumps(answer), file=answers, flush=True)


def _versions(packages):
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])

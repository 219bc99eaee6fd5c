"""The systems that compare.py measures.

Each system runs this file in a process of its own, which loads a model and answers one task at a time. The process runs
in the system's own environment, where neo-tf may be missing: only the class NeoTF imports it.
"""

import functools
import json
import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version


class NeoTF:
    """Runs a model with neo-tf's engine."""

    packages = ("neo-tf", "onnxruntime-gpu", "onnxruntime")

    def __init__(self, folder, precision, threads, batch):
        from neo_tf.runtime.device.session import Session
        from neo_tf.runtime.engine.engine import Engine
        from neo_tf.runtime.engine.request import Request

        def load(slots):
            session = Session(folder, slots=slots, threads=threads or None, precision=precision)
            # Every round has the same prompts, and the prefix cache would know them from the round before.
            return Engine(session, prefix_cache_bytes=0)

        # A single text runs in an engine with one slot, like that of `neo-tf generate`.
        self.request = Request
        self._load = functools.cache(load)
        self._batch = batch
        self._load(batch)

    def generate(self, prompts, count, first):
        """Continues prompts of one length greedily, and measures the time to the first token if it is wanted.

        Args:
            prompts: Lists of token ids.
            count: The number of new tokens of each prompt.
            first: Whether the time to the first token is measured. There is a single prompt then.

        Returns:
            ([new token ids of each prompt], seconds to the first token or None).
        """
        start = time.perf_counter()
        times = []
        clock = (lambda token: times.append(time.perf_counter() - start)) if first else None
        requests = [self.request(prompt, max_new_tokens=count, on_token=clock) for prompt in prompts]
        generations = self._load(1 if len(requests) == 1 else self._batch).generate(requests)
        return [generation.tokens for generation in generations], times[0] if times else None

    def serve(self, prompts, counts):
        """Continues prompts of any lengths greedily. All are submitted at once.

        Args:
            prompts: Lists of token ids.
            counts: The number of new tokens of each prompt.

        Returns:
            For each prompt, a list of the seconds from the submission of all prompts to each of its new tokens.
        """
        times = [[] for _ in prompts]
        start = time.perf_counter()
        requests = [
            self.request(prompt, max_new_tokens=count, on_token=_clock(start, own))
            for prompt, count, own in zip(prompts, counts, times, strict=True)
        ]
        self._load(self._batch).generate(requests)
        return times


def _clock(start, times):
    return lambda token: times.append(time.perf_counter() - start)


class Transformers:
    """Runs a model with transformers on PyTorch, in eager mode."""

    packages = ("transformers", "torch")

    def __init__(self, folder, precision, threads, batch):
        import torch

        if threads:
            torch.set_num_threads(threads)
        self.torch = torch
        self.model = self.load(folder, precision, threads)
        self.model.generation_config.eos_token_id = None  # every continuation has its full length

    def load(self, folder, precision, threads):
        """Returns the model, which has the method `generate` of transformers."""
        from transformers import AutoModelForCausalLM

        dtype = {"fp32": self.torch.float32, "bf16": self.torch.bfloat16}[precision]
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def generate(self, prompts, count, first):
        """See NeoTF.generate."""
        ids = self.torch.tensor(prompts)
        streamer = _Streamer() if first else None
        settings = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0, "streamer": streamer}
        with self.torch.inference_mode():
            out = self.model.generate(ids, attention_mask=self.torch.ones_like(ids), **settings)
        first_s = streamer.times[1] - streamer.times[0] if streamer else None
        return out[:, ids.shape[1] :].tolist(), first_s


class Optimum(Transformers):
    """Runs a model with Optimum's ORTModelForCausalLM."""

    packages = ("optimum", "optimum-onnx", "onnxruntime", "transformers", "torch")

    def load(self, folder, precision, threads):
        """See Transformers.load. The folder was exported in the precision."""
        import onnxruntime
        from optimum.onnxruntime import ORTModelForCausalLM

        options = onnxruntime.SessionOptions()
        if threads:
            options.intra_op_num_threads = threads
        return ORTModelForCausalLM.from_pretrained(folder, session_options=options)


class OpenVINO:
    """Runs a model with OpenVINO GenAI's LLMPipeline, and the attention backend that keeps to the local window."""

    packages = ("openvino", "openvino-genai")

    def __init__(self, folder, precision, threads, batch):
        import numpy
        import openvino
        import openvino_genai

        settings = {"ATTENTION_BACKEND": "SDPA"}  # the default one computes local layers as global ones
        # By default it computes an fp32 model in bf16 where the CPU can, with an 8-bit cache. For the other precisions
        # the defaults are the fastest.
        if precision == "fp32":
            settings |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        elif precision == "bf16":
            settings["INFERENCE_PRECISION_HINT"] = "bf16"
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        self.numpy = numpy
        self.openvino = openvino
        self.genai = openvino_genai
        self.pipeline = openvino_genai.LLMPipeline(str(folder), "CPU", **settings)

    def generate(self, prompts, count, first):
        """See NeoTF.generate. OpenVINO itself measures the first token: a streamer would slow the other tokens down."""
        config = self.genai.GenerationConfig()
        config.max_new_tokens = count
        config.ignore_eos = True
        config.do_sample = False
        ids = self.numpy.array(prompts, self.numpy.int64)
        inputs = self.genai.TokenizedInputs(self.openvino.Tensor(ids), self.openvino.Tensor(self.numpy.ones_like(ids)))
        out = self.pipeline.generate(inputs, config)
        return [list(tokens) for tokens in out.tokens], out.perf_metrics.get_ttft().mean / 1e3


class OpenVINOPaged:
    """Runs a model with OpenVINO GenAI's ContinuousBatchingPipeline.

    Its paged attention computes every layer as a global one.
    """

    packages = OpenVINO.packages

    def __init__(self, folder, precision, threads, batch):
        import numpy
        import openvino
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        # These settings are its fastest: prompts are cut into chunks, which share the steps of the running requests.
        scheduler.dynamic_split_fuse = True
        scheduler.max_num_batched_tokens = 256
        scheduler.max_num_seqs = 256
        scheduler.cache_size = 4  # in GB; 64 requests need less
        scheduler.enable_prefix_caching = False
        settings = {"INFERENCE_NUM_THREADS": threads} if threads else {}
        if precision == "fp32":  # see OpenVINO
            settings |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        self.numpy = numpy
        self.openvino = openvino
        self.genai = openvino_genai
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", settings)

    def serve(self, prompts, counts):
        """See NeoTF.serve. The tokens of a step arrive when the step ends."""
        handles = []
        times = [[] for _ in prompts]
        start = time.perf_counter()
        for number, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
            config = self.genai.GenerationConfig()
            config.max_new_tokens = count
            config.ignore_eos = True
            config.do_sample = False
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
    """Notes when tokens arrive. transformers calls it with the prompt first, and then with each new token."""

    def __init__(self):
        self.times = []

    def put(self, value):
        """Notes the time."""
        self.times.append(time.perf_counter())

    def end(self):
        """Does nothing; transformers calls it after the last token."""


def main(kind, folder, precision, threads, batch):
    """Loads a model, and then answers the tasks that come as lines of JSON on standard input.

    A task {"prompts", "count", "first"} is answered with {"seconds", "first", "tokens"}, and a task
    {"prompts", "counts"} with {"times"}.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print goes to standard error
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

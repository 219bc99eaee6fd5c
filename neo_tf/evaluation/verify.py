"""The source's logits, computed by the Keras model, against those of an exported folder's graphs."""

from dataclasses import dataclass, replace

import numpy as np

from neo_tf.cache_layout import cache_parts
from neo_tf.checkpoints import Checkpoint, open_checkpoint
from neo_tf.errors import CheckpointError, ConfigError, RequestError, one_line
from neo_tf.onnx_folder import DECODER, MODEL, PREFILL, OnnxFolder

TOLERANCE = 1e-4  # absolute, on fp32 logits
_PAST_WINDOW = 64  # tokens beyond the local window


@dataclass(frozen=True)
class Limits:
    """What a lower precision may cost.

    Args:
        cosine: least mean cosine of the logits.
        agreement: least share of a text's positions at which the largest logit is the same one.
        perplexity: how much larger a text's perplexity may be, as a part of the source's.
    """

    cosine: float
    agreement: float
    perplexity: float


LIMITS = {
    "fp16": Limits(0.9999, 0.98, 0.005),
    "bf16": Limits(0.999, 0.94, 0.005),
    "int8": Limits(0.999, 0.88, 0.01),
    "int4": Limits(0.99, 0.65, 0.05),
}


@dataclass(frozen=True)
class Deviation:
    """One comparison: the largest difference, where it is, and the means over all positions.

    Args:
        graph: "decoder.onnx", "model.onnx" or "prefill.onnx".
        mode: "prefill" or "step by step"; "first half" of prefill.onnx, whose own half has no logits.
        error: largest absolute difference of a logit.
        position: of the token whose logits they are; of a longer text, counted from its beginning.
        token_id: which logit.
        logits: how many were compared.
        cosine: mean over the positions, of the two logit vectors.
        agreement: share of the positions at which both have the same largest logit.
        perplexity: the graph's on the text; None where there was none.
        source_perplexity: likewise, the source's.
    """

    graph: str
    mode: str
    error: float
    position: int
    token_id: int
    logits: int
    cosine: float
    agreement: float
    perplexity: float | None = None
    source_perplexity: float | None = None

    @property
    def perplexity_change(self):
        """(graph - source) / source, of the perplexity; None without a text."""
        return self.perplexity / self.source_perplexity - 1 if self.perplexity else None

    def failure(self, precision, tolerance=TOLERANCE):
        """What is beyond the limits of a precision, in words, or None: an error for fp32, LIMITS for others."""
        if precision not in LIMITS:
            # A NaN is within no limit.
            return None if self.error <= tolerance else f"logits differ by {self.error:.2e}, more than {tolerance:.0e}"
        limits = LIMITS[precision]
        if not self.cosine >= limits.cosine:
            return f"the logits' mean cosine {self.cosine:.5f} is below {limits.cosine}, the limit for {precision}"
        if self.perplexity is None:
            return None
        if not self.agreement >= limits.agreement:
            return f"top-1 agreement is {self.agreement:.1%}, below {limits.agreement:.0%}, the limit for {precision}"
        change = self.perplexity_change
        if not change <= limits.perplexity:
            return f"perplexity is {change:+.2%} off, the limit for {precision} is {limits.perplexity:+.1%}"
        return None

    def passes(self, precision, tolerance=TOLERANCE):
        """Whether nothing is beyond the limits of a precision."""
        return self.failure(precision, tolerance) is None


def verify(src, onnx_dir, *, tokens=None, text=None, seed=0, precision=None, progress=None):
    """Compares every position's logits of both graphs with the source's: by prefill, and token by token.

    Args:
        src: a Checkpoint, or what open_checkpoint opens.
        onnx_dir: a folder that export_onnx wrote from it; a trimmed vocabulary is compared as far as it goes.
        tokens: how many; by default past the largest local window, or of a text as many as the context holds.
        text: a str to compare on, and to measure perplexity on, n_ctx tokens at a time; random tokens otherwise.
        seed: of the random tokens.
        precision: one of the folder's; its first where None.
        progress: called as progress(tokens) with the tokens done; verify_work says how many there are.

    Returns:
        A list of Deviations: two for each of decoder.onnx and model.onnx, as far as the folder has them, and one for
        prefill.onnx where it is, of the second half after it has run the first; Deviation.passes says whether they
        are within the limits.

    Raises:
        CheckpointError, ConfigError: either side cannot be used, or they are different models.
        RequestError: more random tokens than n_ctx, a text of less than two tokens, or no such precision.
        MissingExtraError: the extra `tensorflow` is not installed.
    """
    import neo_tf
    from neo_tf.runtime.device.session import Session

    checkpoint = src if isinstance(src, Checkpoint) else open_checkpoint(src)
    folder = OnnxFolder.read(onnx_dir)
    if folder.find_precision(precision) == "bf16":
        raise RequestError(
            f"{folder.path}: bf16 has no CPU kernels, and verify computes on the CPU: judge it on the GPU"
        )
    portable, session = PortableSession(folder, precision), None
    runners = {MODEL: portable}
    if not folder.is_standard:
        session = Session(folder, device="cpu", precision=portable.precision)
        runners = {DECODER: session, MODEL: portable}
    _check_same(checkpoint, portable.config)
    config, progress = portable.config, progress or (lambda count: None)
    sequences = sequences_of(folder, tokens, text, seed)
    source = neo_tf.GPTNeo.from_checkpoint(_without_room_limits(checkpoint))
    expected = []
    for ids in sequences:
        expected.append(np.asarray(source(ids[None]))[0, :, : config.n_vocab])
        progress(len(ids))

    deviations = []
    for graph, runner in runners.items():
        whole, steps = (_Sums(f"{graph}.onnx", mode, text is not None) for mode in ("prefill", "step by step"))
        for ids, logits in zip(sequences, expected, strict=True):
            whole.compare(runner.prefill(0, ids, 0, keep=0), logits, ids, 0)
            progress(len(ids))
            for position in range(len(ids)):
                step = runner.prefill(0, ids[position : position + 1], position, keep=0)
                steps.compare(step, logits[position : position + 1], ids, position)
                progress(1)
        deviations += [whole.deviation(), steps.deviation()]
    if session and session.has_prompt_graph:
        rest = _Sums(f"{PREFILL}.onnx", "first half", text is not None)
        for ids, logits in zip(sequences, expected, strict=True):
            half = (len(ids) - 1) // 2  # of a text of two tokens, none: one must be left to be judged
            if half:
                session.prefill(0, ids[:half], 0, keep=None)
            rest.compare(session.prefill(0, ids[half:], half, keep=0), logits[half:], ids, half)
            progress(len(ids))
        deviations.append(rest.deviation())
    return deviations


def sequences_of(folder, tokens=None, text=None, seed=0):
    """What verify compares on: int arrays of at most n_ctx tokens each. See verify."""
    config = folder.config
    if text is None:
        tokens = default_tokens(config) if tokens is None else tokens
        if not 0 < tokens <= config.n_ctx:
            raise RequestError(f"cannot verify {tokens} tokens: n_ctx is {config.n_ctx}")
        return [np.random.default_rng(seed).integers(0, config.n_vocab, tokens)]
    from neo_tf.runtime.tokenizer import Tokenizer

    ids = np.asarray(Tokenizer(folder.path).encode(text)[: tokens or config.n_ctx])
    if len(ids) < 2:
        raise RequestError("a text of less than two tokens has no perplexity")
    pieces = [ids[start : start + config.n_ctx] for start in range(0, len(ids), config.n_ctx)]
    return [piece for piece in pieces if len(piece) > 1]


def default_tokens(config):
    """Tokens that go past every local window, as far as n_ctx allows."""
    windows = [config.window(layer) for layer in range(config.n_layer)]
    local = [window for window in windows if window < config.n_ctx]
    return min(config.n_ctx, max(local, default=_PAST_WINDOW) + _PAST_WINDOW)


def verify_work(tokens, folder, precision):
    """What verify's progress callback adds up to, for so many tokens in all: once the source, twice a whole graph."""
    if folder.is_standard:
        return 3 * tokens
    return (6 if folder.graph_path(precision, PREFILL).is_file() else 5) * tokens


class PortableSession:
    """model.onnx as any other runtime calls it: growing caches, a mask of ones. For verification, not for speed."""

    def __init__(self, folder, precision=None):
        import onnxruntime

        folder = OnnxFolder.read(folder)
        self.config = folder.config
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self.precision = folder.find_precision(precision)
        path = folder.graph_path(self.precision, MODEL)
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base
            raise CheckpointError(f"{path}: cannot be loaded: {one_line(error)}") from None
        self._parts = cache_parts(self.config, windowed=False, head_size=self.config.head_size)
        self._dtypes = {value.name: value.type for value in self._session.get_inputs()}
        self._cache = []

    def prefill(self, slot, token_ids, past, keep=1):
        """As Session.prefill, for one slot; past 0 begins a new sequence."""
        from neo_tf.runtime.device.session import numpy_dtype

        count = len(token_ids)
        if past == 0:
            self._cache = [
                np.zeros((1, part.heads, 0, part.columns), numpy_dtype(self._dtypes[part.past])) for part in self._parts
            ]
        feed = {part.past: value for part, value in zip(self._parts, self._cache, strict=True)}
        feed["input_ids"] = np.asarray(token_ids, np.int64)[None]
        feed["attention_mask"] = np.ones((1, past + count), np.int64)
        feed["position_ids"] = np.arange(past, past + count, dtype=np.int64)[None]
        feed["num_logits_to_keep"] = np.array([keep], np.int64)
        logits, *self._cache = self._session.run(["logits", *(part.present for part in self._parts)], feed)
        return logits[0]


def _without_room_limits(checkpoint):
    """The checkpoint whose experts have room for all: the graphs do not let positions compete (see export/moe.py)."""
    params = checkpoint.config.moe_params
    if not params:
        return checkpoint
    params = params | {"moe_capacity_factor_eval": params["moe_num_experts"]}
    return replace(checkpoint, config=checkpoint.config.replace(moe_params=params))


class _Sums:
    """One comparison so far."""

    def __init__(self, graph, mode, has_text):
        self.graph, self.mode, self.has_text = graph, mode, has_text
        self.error, self.position, self.token_id, self.logits, self.before = -1.0, 0, 0, 0, 0
        self.cosines, self.agreed, self.losses, self.source_losses = [], [], [], []

    def compare(self, got, expected, ids, first):
        """Logits [n, n_vocab] of the positions from `first` of a sequence, against the source's."""
        difference = np.abs(got - expected)
        # A NaN must not pass for the smallest difference.
        difference = np.where(np.isnan(difference), np.inf, difference)
        row, column = np.unravel_index(np.argmax(difference), difference.shape)
        if difference[row, column] > self.error:
            self.error = float(difference[row, column])
            self.position, self.token_id = self.before + first + int(row), int(column)
        self.logits += difference.size
        norms = np.linalg.norm(got, axis=-1) * np.linalg.norm(expected, axis=-1)
        self.cosines += list(np.nan_to_num((got * expected).sum(axis=-1) / norms, nan=-1.0))
        self.agreed += list(got.argmax(axis=-1) == expected.argmax(axis=-1))
        labels = ids[first + 1 : first + 1 + len(got)]
        self.losses += list(_losses(got, labels))
        self.source_losses += list(_losses(expected, labels))
        if first + len(got) == len(ids):
            self.before += len(ids)

    def deviation(self):
        where = (self.position, self.token_id, self.logits)
        means = [float(np.mean(self.cosines)), float(np.mean(self.agreed))]
        if self.has_text:
            means += [float(np.exp(np.mean(losses))) for losses in (self.losses, self.source_losses)]
        return Deviation(self.graph, self.mode, self.error, *where, *means)


def _losses(logits, labels):
    """Negative log-likelihoods of the labels: [n, n_vocab], int [m <= n] -> float64 [m]."""
    logits = logits[: len(labels)].astype(np.float64)
    largest = logits.max(axis=-1)
    return np.log(np.exp(logits - largest[:, None]).sum(axis=-1)) + largest - logits[np.arange(len(labels)), labels]


def _check_same(checkpoint, config):
    for name in ("n_ctx", "n_embd", "n_head", "n_layer", "attention_types"):
        source, exported = getattr(checkpoint.config, name), getattr(config, name)
        if source != exported:
            raise ConfigError(f"{checkpoint.path}: {name} is {source}, but the exported model's is {exported}")
    if config.n_vocab > checkpoint.config.n_vocab:
        raise ConfigError(
            f"{checkpoint.path}: n_vocab is {checkpoint.config.n_vocab}, but the exported model's is {config.n_vocab}"
        )

"""The source's logits, computed by the Keras model, against those of an exported folder's graphs."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from export.package import MODEL_FILE
from neo_tf.cache_layout import cache_parts
from neo_tf.checkpoints import Checkpoint, open_checkpoint
from neo_tf.checkpoints.huggingface import CONFIG_FILE
from neo_tf.config import read_json
from neo_tf.errors import CheckpointError, ConfigError, RequestError, one_line

TOLERANCE = 1e-4  # absolute, on fp32 logits
COSINES = {"int8": 0.999, "int4": 0.99}  # least mean cosine of the logits of a lower precision
_PAST_WINDOW = 64  # tokens beyond the local window


@dataclass(frozen=True)
class Deviation:
    """The largest difference of one comparison, and where it is.

    Args:
        graph: "decoder.onnx" or "model.onnx".
        mode: "prefill" or "step by step".
        error: largest absolute difference of a logit.
        position: of the token whose logits they are.
        token_id: which logit.
        logits: how many were compared.
        cosine: mean over the positions, of the two logit vectors.
        agreement: share of the positions at which both have the same largest logit.
    """

    graph: str
    mode: str
    error: float
    position: int
    token_id: int
    logits: int
    cosine: float
    agreement: float

    def passes(self, precision, tolerance=TOLERANCE):
        """Whether it is within the limit of a folder's precision: an error for fp32, a mean cosine for others."""
        return self.cosine >= COSINES[precision] if precision in COSINES else self.error <= tolerance


def verify(src, onnx_dir, *, tokens=None, seed=0, progress=None):
    """Compares every position's logits of both graphs with the source's: by prefill, and token by token.

    Args:
        src: a Checkpoint, or what open_checkpoint opens.
        onnx_dir: a folder that export_onnx wrote from it; a trimmed vocabulary is compared as far as it goes.
        tokens: length of the random sequence; by default past the largest local window.
        seed: of the sequence.
        progress: called as progress(tokens) with the tokens done; verify_work says how many there are.

    Returns:
        A list of four Deviations; Deviation.passes says whether they are within the limits.

    Raises:
        CheckpointError, ConfigError: either side cannot be used, or they are different models.
        RequestError: more tokens than n_ctx.
        MissingExtraError: the extra `tensorflow` is not installed.
    """
    import neo_tf
    from runtime.session import Session

    checkpoint = src if isinstance(src, Checkpoint) else open_checkpoint(src)
    session = Session(onnx_dir, device="cpu")
    _check_same(checkpoint, session.config)
    config, progress = session.config, progress or (lambda count: None)
    tokens = default_tokens(config) if tokens is None else tokens
    if not 0 < tokens <= config.n_ctx:
        raise RequestError(f"cannot verify {tokens} tokens: n_ctx is {config.n_ctx}")
    ids = np.random.default_rng(seed).integers(0, config.n_vocab, tokens)
    expected = np.asarray(neo_tf.GPTNeo.from_checkpoint(_without_room_limits(checkpoint))(ids[None]))
    expected = expected[0, :, : config.n_vocab]
    progress(tokens)

    deviations = []
    portable = PortableSession(onnx_dir)
    for graph, runner in (("decoder.onnx", session), (MODEL_FILE, portable)):
        whole = _Largest(graph, "prefill")
        whole.compare(runner.prefill(0, ids, 0, keep=0), expected, 0)
        progress(tokens)
        steps = _Largest(graph, "step by step")
        for position in range(tokens):
            logits = runner.prefill(0, ids[position : position + 1], position, keep=0)
            steps.compare(logits, expected[position : position + 1], position)
            progress(1)
        deviations += [whole.deviation(), steps.deviation()]
    return deviations


def exported_precision(onnx_dir):
    """The precision that a folder was exported in: a key of PRECISIONS."""
    return read_json(Path(onnx_dir) / CONFIG_FILE).get("weight_precision", "fp32")


def default_tokens(config):
    """Tokens that go past every local window, as far as n_ctx allows."""
    windows = [config.window(layer) for layer in range(config.n_layer)]
    local = [window for window in windows if window < config.n_ctx]
    return min(config.n_ctx, max(local, default=_PAST_WINDOW) + _PAST_WINDOW)


def verify_work(tokens):
    """What verify's progress callback adds up to."""
    return 5 * tokens


class PortableSession:
    """model.onnx as any other runtime calls it: growing caches, a mask of ones. For verification, not for speed."""

    def __init__(self, folder):
        import onnxruntime

        from neo_tf.config import GPTNeoConfig

        self.config = GPTNeoConfig.from_file(Path(folder) / "config.json")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        path = Path(folder) / MODEL_FILE
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base
            raise CheckpointError(f"{path}: cannot be loaded: {one_line(error)}") from None
        self._parts = cache_parts(self.config, windowed=False, head_size=self.config.head_size)
        self._cache = []

    def prefill(self, slot, token_ids, past, keep=1):
        """As runtime.session.Session.prefill, for one slot; past 0 begins a new sequence."""
        count = len(token_ids)
        if past == 0:
            self._cache = [np.zeros((1, part.heads, 0, part.columns), np.float32) for part in self._parts]
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


class _Largest:
    """The largest difference so far."""

    def __init__(self, graph, mode):
        self.graph, self.mode = graph, mode
        self.error, self.position, self.token_id, self.logits = -1.0, 0, 0, 0
        self.cosines, self.agreed = [], []

    def compare(self, got, expected, first):
        difference = np.abs(got - expected)
        # A NaN must not pass for the smallest difference.
        difference = np.where(np.isnan(difference), np.inf, difference)
        row, column = np.unravel_index(np.argmax(difference), difference.shape)
        if difference[row, column] > self.error:
            self.error = float(difference[row, column])
            self.position, self.token_id = first + int(row), int(column)
        self.logits += difference.size
        norms = np.linalg.norm(got, axis=-1) * np.linalg.norm(expected, axis=-1)
        self.cosines += list(np.nan_to_num((got * expected).sum(axis=-1) / norms, nan=-1.0))
        self.agreed += list(got.argmax(axis=-1) == expected.argmax(axis=-1))

    def deviation(self):
        where = (self.position, self.token_id, self.logits)
        means = (float(np.mean(self.cosines)), float(np.mean(self.agreed)))
        return Deviation(self.graph, self.mode, self.error, *where, *means)


def _check_same(checkpoint, config):
    for name in ("n_ctx", "n_embd", "n_head", "n_layer", "attention_types"):
        source, exported = getattr(checkpoint.config, name), getattr(config, name)
        if source != exported:
            raise ConfigError(f"{checkpoint.path}: {name} is {source}, but the exported model's is {exported}")
    if config.n_vocab > checkpoint.config.n_vocab:
        raise ConfigError(
            f"{checkpoint.path}: n_vocab is {checkpoint.config.n_vocab}, but the exported model's is {config.n_vocab}"
        )

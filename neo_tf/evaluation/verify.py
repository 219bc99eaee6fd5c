"""Compares the source's logits, computed by the Keras model, with those of an exported folder's graphs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

import neo_tf
from neo_tf.checkpoints import Checkpoint, open_checkpoint
from neo_tf.config import GPTNeoConfig
from neo_tf.errors import ConfigError, RequestError
from neo_tf.evaluation.deviation import Comparison, Deviation
from neo_tf.evaluation.portable_session import PortableSession
from neo_tf.onnx_folder import DECODER, MODEL, PREFILL, OnnxFolder
from neo_tf.progress import Progress, no_progress
from neo_tf.runtime.device.machine import exact_int8
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.tokenizer import Tokenizer

_PAST_WINDOW = 64  # tokens beyond the local window


def verify(
    src: Checkpoint | Path | str,
    onnx_dir: OnnxFolder | Path | str,
    *,
    tokens: int | None = None,
    text: str | None = None,
    seed: int = 0,
    precision: str | None = None,
    progress: Progress = no_progress,
) -> list[Deviation]:
    """Compares the logits of every position with the source's: by prefill, and token by token.

    Args:
        src: A Checkpoint, or what open_checkpoint opens.
        onnx_dir: The folder that export_onnx wrote from it. A trimmed vocabulary is compared as far as it goes.
        tokens: The number of tokens. By default random tokens go past the largest local window, and a text is cut at
            n_ctx tokens.
        text: A text to compare on, n_ctx tokens at a time, and to measure the perplexity of. Without one, the tokens
            are random.
        seed: The seed of the random tokens.
        precision: One of the folder's precisions; its first one where None.
        progress: Called with the number of tokens that were run since the last call; see Verification.work.

    Returns:
        A list of Deviations: two for decoder.onnx and two for model.onnx, as far as the folder has them, and one for
        prefill.onnx, as far as the runtime uses it. Deviation.failure says whether one is within the limits.

    Raises:
        CheckpointError, ConfigError: Either side cannot be used, or they are different models.
        RequestError: More random tokens than n_ctx, a text of less than two tokens, or a precision that the folder
            does not hold or that the CPU cannot run.
        MissingExtraError: The extra `tensorflow` is not installed.
    """
    planned = Verification.plan(src, onnx_dir, tokens=tokens, text=text, seed=seed, precision=precision)
    return planned.run(progress)


@dataclass(frozen=True)
class Verification:
    """A comparison that is planned: both sides are read and fit together, and nothing has been computed yet.

    Args:
        checkpoint: The source.
        folder: The exported folder.
        precision: The one of its precisions that is compared.
        sequences: The token ids that both sides run: int arrays [n], 1 <= n <= n_ctx.
        has_text: Whether the tokens are a text, which has a perplexity.
    """

    checkpoint: Checkpoint
    folder: OnnxFolder
    precision: str
    sequences: tuple[np.ndarray, ...]
    has_text: bool

    @classmethod
    def plan(
        cls,
        src: Checkpoint | Path | str,
        onnx_dir: OnnxFolder | Path | str,
        *,
        tokens: int | None = None,
        text: str | None = None,
        seed: int = 0,
        precision: str | None = None,
    ) -> Verification:
        """Reads and checks both sides, and chooses the tokens. See verify for the arguments and errors."""
        checkpoint = src if isinstance(src, Checkpoint) else open_checkpoint(src)
        folder = OnnxFolder.read(onnx_dir)
        precision = folder.find_precision(precision)
        if precision == "bf16":
            raise RequestError(
                f"{folder.path}: bf16 has no CPU kernels, and verify computes on the CPU: compare it on a GPU"
            )
        _check_same(checkpoint, folder.config)
        if text is None:
            sequences = [_random_tokens(folder.config, tokens, seed)]
        else:
            sequences = _text_tokens(folder, text, tokens)
        return cls(checkpoint, folder, precision, tuple(sequences), text is not None)

    @property
    def tokens(self) -> int:
        """The number of tokens in all sequences."""
        return sum(len(ids) for ids in self.sequences)

    @property
    def work(self) -> int:
        """What the amounts of run's progress add up to: tokens, once for each time that they are run."""
        times = 1 + 2  # the source's run, and two of model.onnx
        if not self.folder.is_standard:
            times += 2  # of decoder.onnx
        if exact_int8() and self.folder.graph_path(self.precision, PREFILL).is_file():
            times += 1  # Session has the same condition
        return times * self.tokens

    def run(self, progress: Progress = no_progress) -> list[Deviation]:
        """Computes both sides' logits and compares them. See verify."""
        session = None
        runners: dict[str, _Runner] = {}
        if not self.folder.is_standard:
            session = Session(self.folder, device="cpu", precision=self.precision)
            runners[DECODER] = session
        runners[MODEL] = PortableSession(self.folder, self.precision)
        expected = self._source_logits(progress)
        deviations = []
        for graph, runner in runners.items():
            deviations.append(self._compare_prefill(f"{graph}.onnx", runner, expected, progress))
            deviations.append(self._compare_steps(f"{graph}.onnx", runner, expected, progress))
        if session and session.has_prompt_graph:
            deviations.append(self._compare_second_half(session, expected, progress))
        return deviations

    def _source_logits(self, progress: Progress) -> list[np.ndarray]:
        """The source's logits of each sequence: float32 [n, n_vocab of the folder]."""
        source = neo_tf.GPTNeo.from_checkpoint(_without_room_limits(self.checkpoint))
        expected = []
        for ids in self.sequences:
            logits = np.asarray(source(ids[None]))  # [1, n, n_vocab of the source]
            expected.append(logits[0, :, : self.folder.config.n_vocab])
            progress(len(ids))
        return expected

    def _compare_prefill(
        self, graph: str, runner: _Runner, expected: list[np.ndarray], progress: Progress
    ) -> Deviation:
        """All tokens of a sequence in one run."""
        comparison = Comparison(graph, "prefill", self.has_text)
        for ids, logits in zip(self.sequences, expected, strict=True):
            comparison.add(runner.prefill(0, ids, 0, logits_of="all"), logits, ids, 0)
            progress(len(ids))
        return comparison.deviation()

    def _compare_steps(self, graph: str, runner: _Runner, expected: list[np.ndarray], progress: Progress) -> Deviation:
        """One token in each run."""
        comparison = Comparison(graph, "step by step", self.has_text)
        for ids, logits in zip(self.sequences, expected, strict=True):
            for position in range(len(ids)):
                step = runner.prefill(0, ids[position : position + 1], position, logits_of="all")
                comparison.add(step, logits[position : position + 1], ids, position)
                progress(1)
        return comparison.deviation()

    def _compare_second_half(self, session: Session, expected: list[np.ndarray], progress: Progress) -> Deviation:
        """prefill.onnx runs the first half of a sequence; decoder.onnx runs the rest on the cache that it left."""
        comparison = Comparison(f"{PREFILL}.onnx", "first half", self.has_text)
        for ids, logits in zip(self.sequences, expected, strict=True):
            half = (len(ids) - 1) // 2  # 0 for two tokens: the second half needs a token that has a successor
            if half:
                session.prefill(0, ids[:half], 0, logits_of=0)
            comparison.add(session.prefill(0, ids[half:], half, logits_of="all"), logits[half:], ids, half)
            progress(len(ids))
        return comparison.deviation()


class _Runner(Protocol):
    """What Session and PortableSession have in common."""

    def prefill(self, slot: int, token_ids: np.ndarray, past: int, logits_of: int | Literal["all"] = 1) -> np.ndarray:
        """Runs tokens of one sequence; see Session.prefill."""


def default_tokens(config: GPTNeoConfig) -> int:
    """The number of tokens that go past every local window, as far as n_ctx allows."""
    windows = [config.window(layer) for layer in range(config.n_layer)]
    local = [window for window in windows if window < config.n_ctx]
    return min(config.n_ctx, max(local, default=_PAST_WINDOW) + _PAST_WINDOW)


def _random_tokens(config: GPTNeoConfig, tokens: int | None, seed: int) -> np.ndarray:
    if tokens is None:
        tokens = default_tokens(config)
    if not 0 < tokens <= config.n_ctx:
        raise RequestError(f"cannot verify {tokens} tokens: n_ctx is {config.n_ctx}")
    return np.random.default_rng(seed).integers(0, config.n_vocab, tokens)


def _text_tokens(folder: OnnxFolder, text: str, tokens: int | None) -> list[np.ndarray]:
    """The first tokens of a text, cut into pieces of n_ctx."""
    n_ctx = folder.config.n_ctx
    ids = np.asarray(Tokenizer(folder.path).encode(text)[: tokens or n_ctx])
    if len(ids) < 2:
        raise RequestError("a text of less than two tokens has no perplexity")
    pieces = [ids[start : start + n_ctx] for start in range(0, len(ids), n_ctx)]
    return [piece for piece in pieces if len(piece) > 1]


def _without_room_limits(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint whose experts have room for all: the graphs do not let positions compete (see export/moe.py)."""
    params = checkpoint.config.moe_params
    if not params:
        return checkpoint
    params = params | {"moe_capacity_factor_eval": params["moe_num_experts"]}
    return replace(checkpoint, config=checkpoint.config.replace(moe_params=params))


def _check_same(checkpoint: Checkpoint, config: GPTNeoConfig) -> None:
    for name in ("n_ctx", "n_embd", "n_head", "n_layer", "attention_types"):
        source, exported = getattr(checkpoint.config, name), getattr(config, name)
        if source != exported:
            raise ConfigError(f"{checkpoint.path}: {name} is {source}, but the exported model's is {exported}")
    if config.n_vocab > checkpoint.config.n_vocab:
        raise ConfigError(
            f"{checkpoint.path}: n_vocab is {checkpoint.config.n_vocab}, but the exported model's is {config.n_vocab}"
        )

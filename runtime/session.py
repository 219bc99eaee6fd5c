"""One ONNX Runtime session over decoder.onnx: its buffers, and the two calls that the engine makes."""

from pathlib import Path

import numpy as np

from neo_tf.cache_layout import cache_parts
from neo_tf.config import GPTNeoConfig
from neo_tf.errors import CheckpointError, ConfigError, NeoTFError, one_line
from runtime.kv_cache import KVCache
from runtime.providers import choose, create_session

DECODER_FILE = "decoder.onnx"
CONFIG_FILE = "config.json"


class Session:
    """A decoder with its KV cache.

    Args:
        folder: an ONNX folder that export_onnx wrote.
        slots: sequences that the cache holds at once.
        device: None (chosen), "cpu", "cuda" or "cuda:N".
        threads: of the CPU; ONNX Runtime's choice where None.

    Raises:
        CheckpointError: the folder is damaged or is none of ours.
        ConfigError: its config.json cannot be used.
        ProviderError: the device was asked for and is not there.
    """

    def __init__(self, folder, slots=1, device=None, threads=None):
        import onnxruntime

        folder = Path(folder)
        self.config = GPTNeoConfig.from_file(folder / CONFIG_FILE)
        self.device, self.device_id = choose(device, self.config.precision)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised; the log would only say them twice
        if threads:
            options.intra_op_num_threads = threads
        path = folder / DECODER_FILE
        if not path.is_file():
            raise CheckpointError(f"{folder}: not an ONNX folder: it has no {DECODER_FILE}")
        try:
            self._session = create_session(path, self.device, self.device_id, options)
        except NeoTFError:
            raise
        except Exception as error:  # onnxruntime's errors have no common base
            raise CheckpointError(f"{path}: cannot be loaded: {one_line(error)}") from None
        self._check_graph(path)
        self.cache = KVCache(self.config, slots, np.float32, self.device, self.device_id)
        self._decoders = {}

    def _check_graph(self, path):
        """The buffers are cut to the config: the graph must agree before it reads and writes them."""
        shapes = {value.name: value.shape for value in (*self._session.get_inputs(), *self._session.get_outputs())}
        wanted = {"logits": [self.config.n_vocab]}
        wanted |= {part.past: [part.heads, part.columns] for part in cache_parts(self.config)}
        found = {name: [size for size in shape[1:] if isinstance(size, int)] for name, shape in shapes.items()}
        caches = {name for name in shapes if name.startswith("past_key_values.")}
        for name in sorted({*wanted, *caches}):
            if found.get(name) != wanted.get(name):
                raise ConfigError(
                    f"{path}: {name} has sizes {found.get(name)}, but config.json asks for {wanted.get(name)}"
                )

    @property
    def slots(self):
        """Sequences that the cache holds at once."""
        return self.cache.slots

    def prefill(self, slot, token_ids, past, keep=1):
        """Runs several tokens of one sequence, appending them to its slot.

        Args:
            slot: the row of the cache.
            token_ids: int [n], n >= 1; the sequence's next tokens.
            past: tokens that the slot holds already; past + n <= n_ctx.
            keep: logits of the last so many tokens; 0 is all.

        Returns:
            float32 [keep, n_vocab].
        """
        step = _Step(self, slot, 1, len(token_ids), keep or len(token_ids))
        step.input_ids[0] = token_ids
        step.position_ids[0] = np.arange(past, past + len(token_ids))
        step.run([past + len(token_ids)])
        return step.logits[0]

    def decode(self, first, token_ids, past):
        """Runs one token of each of several neighbouring rows of the cache together, each at its own length.

        Args:
            first: the first of the rows.
            token_ids: int [rows]; for an idle row any token.
            past: int [rows]; tokens that each row holds. An idle row's 0 overwrites its first position.

        Returns:
            float32 [rows, n_vocab]; the buffer is used again by the next call for the same rows.
        """
        rows = len(token_ids)
        if (first, rows) not in self._decoders:
            self._decoders[first, rows] = _Step(self, first, rows, 1, 1)
        step = self._decoders[first, rows]
        step.input_ids[:, 0] = token_ids
        step.position_ids[:, 0] = past
        step.run(np.asarray(past) + 1)
        return step.logits[:, 0]


class _Step:
    """The bound buffers of one shape of run: [rows, tokens] in, [rows, keep] logits out."""

    def __init__(self, session, slot, rows, tokens, keep):
        self._session = session._session
        self.input_ids = np.zeros((rows, tokens), np.int64)
        self.position_ids = np.zeros((rows, tokens), np.int64)
        self.seqlens_k = np.zeros(rows, np.int32)
        self.total_sequence_length = np.zeros((), np.int32)
        self.num_logits_to_keep = np.array([keep], np.int64)
        self.logits = np.empty((rows, keep, session.config.n_vocab), np.float32)
        self.next_tokens = np.empty((rows, keep), np.int64)
        self._binding = self._session.io_binding()
        inputs = ("input_ids", "position_ids", "seqlens_k", "total_sequence_length", "num_logits_to_keep")
        for name in inputs:
            self._bind(self._binding.bind_input, name)
        for name in ("logits", "next_tokens"):
            self._bind(self._binding.bind_output, name)
        session.cache.bind(self._binding, slot, rows)

    def _bind(self, bind, name):
        value = getattr(self, name)
        bind(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)

    def run(self, lengths):
        """Runs the graph; lengths [rows] count this step's tokens."""
        self.seqlens_k[:] = np.asarray(lengths) - 1
        self.total_sequence_length[...] = np.max(lengths)
        self._session.run_with_iobinding(self._binding)

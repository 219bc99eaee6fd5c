"""ONNX Runtime sessions over a folder's graphs: their buffers, and the two calls that the engine makes."""

import numpy as np

from neo_tf.cache_layout import cache_parts
from neo_tf.errors import CheckpointError, ConfigError, NeoTFError, ProviderError, one_line
from neo_tf.onnx_folder import DECODER, PREFILL, OnnxFolder

from ..sampling.checks import check_number
from .kv_cache import KVCache
from .machine import exact_int8
from .providers import choose, create_session, placement

QUANTISED = ("int8", "int4")
_SPIN = 1000  # microseconds that a thread waits awake for its next piece of work
_INPUTS = ("input_ids", "position_ids", "seqlens_k", "total_sequence_length")


class Session:
    """A decoder with its KV cache.

    Args:
        folder: an ONNX folder that export_onnx wrote: its path, or an OnnxFolder that was read before.
        slots: sequences that the cache holds at once.
        device: None (what the folder was exported for), "cpu", "cuda" or "cuda:N".
        threads: of the CPU; ONNX Runtime's choice where None.
        precision: one of the folder's; its first where None.

    Attributes:
        slots: as given; the cache may have one more.
        folder: the OnnxFolder.

    Raises:
        CheckpointError: the folder is damaged or is none of ours.
        ConfigError: its config.json cannot be used.
        ProviderError: the device was asked for and is not there.
        RequestError: the folder has no such precision.
    """

    def __init__(self, folder, slots=1, device=None, threads=None, precision=None):
        check_number("slots", slots, int, lambda value: value >= 1, "be at least 1")
        self.slots = slots
        self.folder = folder = OnnxFolder.read(folder)
        self.config = folder.config
        self.precision = folder.find_precision(precision)
        self.device, self.device_id = choose(device, folder.target)
        if self.precision == "bf16" and self.device == "cpu":
            raise ProviderError(f"{folder.path}: bf16 has kernels on CUDA alone")
        path = folder.graph_path(self.precision, DECODER)
        if not path.is_file():
            raise CheckpointError(f"{folder.path}: an ONNX folder of neo-tf has a {path.name}, and this one has none")
        self._session = self._load(path, threads)
        wanted = {"logits": [self.config.n_vocab]}
        dtype = self._check_graph(path, self._session, {*_INPUTS, "logits_start"}, wanted)
        prompts = folder.graph_path(self.precision, PREFILL)
        self._prompts = None
        if prompts.is_file() and exact_int8():
            self._prompts = self._load(prompts, threads)
            self._check_graph(prompts, self._prompts, set(_INPUTS), {})
        rows = slots + slots % 2 if self.in_pairs else slots  # a last odd slot needs a neighbour
        size = rows * KVCache.bytes_per_slot(self.config, dtype, self.device)
        small = size < folder.data_path.stat().st_size / 2  # beside the weights
        self.cache = KVCache(self.config, rows, dtype, self.device, self.device_id, large_pages=small)
        self._decoders = {}
        self._logits = np.empty((rows, 1, self.config.n_vocab), np.float32)  # of every decode step, row by row

    def _load(self, path, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised; the log would only say them twice
        # A folder has two graphs with threads of their own: one's must not spin for 20 ms on into the other's run.
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN))
        if threads:
            options.intra_op_num_threads = threads
        try:
            return create_session(path, self.device, self.device_id, options)
        except NeoTFError:
            raise
        except Exception as error:  # onnxruntime's errors have no common base
            raise CheckpointError(f"{path}: cannot be loaded: {one_line(error)}") from None

    def _check_graph(self, path, session, names, wanted):
        """The buffers are cut to the config: the graph must agree before it reads and writes them.

        Returns:
            The numpy dtype of keys and values.
        """
        inputs = session.get_inputs()
        missing = names - {value.name for value in inputs}
        if missing:
            raise CheckpointError(
                f"{path}: has no input {', '.join(sorted(missing))}: export it again with this neo-tf"
            )
        shapes = {value.name: value.shape for value in (*inputs, *session.get_outputs())}
        wanted = wanted | {part.past: [part.heads, part.columns] for part in cache_parts(self.config)}
        found = {name: [size for size in shape[1:] if isinstance(size, int)] for name, shape in shapes.items()}
        caches = {name for name in shapes if name.startswith("past_key_values.")}
        for name in sorted({*wanted, *caches}):
            if found.get(name) != wanted.get(name):
                raise ConfigError(
                    f"{path}: {name} has sizes {found.get(name)}, but config.json asks for {wanted.get(name)}"
                )
        keys = {part.past for part in cache_parts(self.config) if part.kind != "sums"}
        return numpy_dtype(next((value.type for value in inputs if value.name in keys), "tensor(float)"))

    @property
    def placement(self):
        """{provider: [names of the nodes that it runs]}, on CUDA; see placement in providers.py."""
        return placement(self._session)

    @property
    def has_prompt_graph(self):
        """Whether prompts have a graph of their own, prefill.onnx."""
        return self._prompts is not None

    @property
    def in_pairs(self):
        """Whether rows are to be decoded in even numbers, for a row's logits to be the same in any company, bit by bit.

        ONNX Runtime's kernel for quantised weights takes two rows at a time, and adds up a last odd one otherwise.
        With one slot there is no company, and a lone row is faster.
        """
        return self.slots > 1 and self.device == "cpu" and self.precision in QUANTISED

    def prefill(self, slot, token_ids, past, keep=1):
        """Runs several tokens of one sequence, appending them to its slot.

        Tokens whose logits are not asked for go through prefill.onnx where the folder has it.

        Args:
            slot: the row of the cache.
            token_ids: int [n], n >= 1; the sequence's next tokens.
            past: tokens that the slot holds already; past + n <= n_ctx.
            keep: logits of the last so many tokens; 0 is all, and None is none.

        Returns:
            float32 [keep, n_vocab], or None.
        """
        token_ids = np.asarray(token_ids)
        kept = len(token_ids) if keep == 0 else keep or 0
        silent = len(token_ids) - kept
        if self._prompts and silent:
            self._step(self._prompts, slot, 1, silent, None).run(token_ids[None, :silent], past)
            token_ids, past = token_ids[silent:], past + silent
            if not kept:
                return None
        step = self._step(self._session, slot, 1, len(token_ids), kept or 1)
        step.run(token_ids[None], past)
        return step.logits[0] if kept else None

    def decode(self, first, token_ids, past):
        """Runs one token of each of several neighbouring rows of the cache together, each at its own length.

        Args:
            first: the first of the rows.
            token_ids: int [rows]; for an idle row any token.
            past: int [rows]; tokens that each row holds. An idle row's 0 overwrites its first position.

        Returns:
            float32 [rows, n_vocab]; the rows' buffer is used again by the next call.
        """
        rows = len(token_ids)
        if (first, rows) not in self._decoders:
            logits = self._logits[first : first + rows]
            self._decoders[first, rows] = self._step(self._session, first, rows, 1, 1, logits)
        step = self._decoders[first, rows]
        step.run(np.reshape(token_ids, (rows, 1)), past)
        return step.logits[:, 0]

    def _step(self, session, slot, rows, tokens, keep, logits=None):
        if logits is None and keep is not None:
            logits = np.empty((rows, keep, self.config.n_vocab), np.float32)
        step = _Step(session, rows, tokens, logits)
        self.cache.bind(step.binding, slot, rows)
        return step


class _Step:
    """The bound buffers of one shape of run: [rows, tokens] in, logits [rows, keep, n_vocab] out, or None of them."""

    def __init__(self, session, rows, tokens, logits):
        self._session, self.binding = session, session.io_binding()
        self._tokens = np.arange(tokens)
        self.input_ids = np.zeros((rows, tokens), np.int64)
        self.position_ids = np.zeros((rows, tokens), np.int64)
        self.seqlens_k = np.zeros(rows, np.int32)
        self.total_sequence_length = np.zeros((), np.int32)
        inputs = list(_INPUTS)
        if logits is not None:
            self.logits, keep = logits, logits.shape[1]
            self.logits_start = np.array([tokens - keep], np.int64)
            inputs.append("logits_start")
            self._bind(self.binding.bind_output, "logits")
        for name in inputs:
            self._bind(self.binding.bind_input, name)

    def _bind(self, bind, name):
        value = getattr(self, name)
        bind(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)

    def run(self, token_ids, past):
        """Runs the graph on int [rows, tokens], after past tokens, an int or int [rows]."""
        tokens, past = len(self._tokens), np.asarray(past)
        self.input_ids[:] = token_ids
        self.position_ids[:] = past[..., None] + self._tokens
        self.seqlens_k[:] = past + (tokens - 1)
        self.total_sequence_length[...] = past.max() + tokens
        self._session.run_with_iobinding(self.binding)


def numpy_dtype(name):
    """The numpy dtype of an onnxruntime type such as tensor(float16)."""
    if name == "tensor(bfloat16)":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype({"tensor(float)": np.float32, "tensor(float16)": np.float16}[name])

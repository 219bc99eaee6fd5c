"""The Hugging Face-shaped front: pipeline("text-generation", model=…), as the model cards call it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from neo_tf.errors import RequestError
from neo_tf.hub import tokenizer_path
from neo_tf.model_cache import resolve_model
from neo_tf.notes import note
from neo_tf.runtime.argument_table import ARGUMENTS, LEFT_OUT, NO_EFFECT, OLD_NAMES
from neo_tf.runtime.device.providers import is_for_cuda
from neo_tf.runtime.pipeline import TASK, TextGenerationPipeline
from neo_tf.runtime.tokenizer import as_tokenizer

if TYPE_CHECKING:
    from neo_tf.runtime.tokenizer import Tokenizer

# Arguments of transformers' pipeline() that change nothing here, whatever their values are.
_NO_EFFECT = frozenset(("framework", "use_fast", "num_workers", "trust_remote_code", "torch_compile", "model_card"))
# transformers' dtype, by its last part -> our precision; "auto" is what the folder has.
_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "auto": None}
_OF_CUDA = ("fp16", "bf16")


def pipeline(
    task: str | None = TASK,
    model: Path | str | None = None,
    *,
    tokenizer: Path | str | Tokenizer | Any = None,
    revision: str | None = None,
    moe_policy: str | None = None,
    device: str | int | None = None,
    batch_size: int = 8,
    threads: int | None = None,
    precision: str | None = None,
    adapter: Path | str | None = None,
    cache_bytes: int | None = None,
    prefix_cache_bytes: int | None = None,
    device_map: Any = None,
    dtype: Any = None,
    torch_dtype: Any = None,
    **arguments: Any,
) -> TextGenerationPipeline:
    """Makes a text generator.

    Args:
        task: "text-generation".
        model: An ONNX folder, a checkpoint in any format (it is exported into the cache once), or a hub id.
        tokenizer: A folder that holds a tokenizer, a tokenizer.json, a hub id, a Tokenizer, or an object of
            transformers' or of the package tokenizers; the model's own where None, or where it is the same name as the
            model.
        revision: A branch, tag or commit of a hub id.
        moe_policy: See neo_tf.open_checkpoint.
        device: "cpu", "cuda", "cuda:N", or transformers' -1, 0, 1, ...; the device that the model was exported for
            where None.
        batch_size: The number of sequences that are decoded together.
        threads: The number of CPU threads; ONNX Runtime chooses it where None.
        precision: One of an ONNX folder's precisions, its first one where None; or the precision that a checkpoint is
            exported in, fp32 where None.
        adapter: A LoRA adapter of PEFT, as a folder or a hub id, which is merged into a checkpoint's weights.
        cache_bytes, prefix_cache_bytes: The memory that the caches may take, in bytes; see Engine.
        device_map: transformers' other way to name the device: "auto", a device, or {"": device}.
        dtype, torch_dtype: transformers' names of a precision: float32, float16, bfloat16, as text or as
            torch's. "auto" is the same as None. Without CUDA float16 and bfloat16 are computed in fp32, with a note.
        arguments: Arguments of generation that hold for each call, unless the call gives others.

    Returns:
        A TextGenerationPipeline. Many threads may call it at once.

    Raises:
        RequestError: The task is another one, no model is given, or an argument is unknown or not served.
        NeoTFError: See neo_tf.model_cache.resolve_model and Session.

    Example:
        >>> generator = pipeline("text-generation", model="EleutherAI/gpt-neo-125M")
        >>> generator("EleutherAI has", do_sample=True, min_length=50)
        [{'generated_text': 'EleutherAI has ...'}]
    """
    if task not in (TASK, None):
        raise RequestError(f"unknown task {task!r} (known: {TASK})")
    if model is None:
        raise RequestError("no model given: name a folder or a hub id")
    if not isinstance(model, str | Path):
        raise RequestError(
            f"model must be a folder or a hub id, not a {type(model).__name__}: save it, and name the folder"
        )
    if batch_size < 1:
        raise RequestError(f"batch_size must be at least 1, not {batch_size}")
    trusts_code = bool(arguments.get("trust_remote_code"))
    arguments = _of_generation(arguments)
    if tokenizer is not None and str(tokenizer) == str(model) and not Path(model).exists():
        tokenizer = None  # of a hub id: its own
    given = tokenizer if isinstance(tokenizer, str | Path | None) else as_tokenizer(tokenizer)
    if isinstance(given, str | Path):
        given = tokenizer_path(given, revision)
    path = given if isinstance(given, str | Path) else None
    named = _device(device, device_map)
    precision = _precision(precision, dtype, torch_dtype)
    if precision in _OF_CUDA and (dtype or torch_dtype) and not is_for_cuda(named):
        note(f"{precision} is for CUDA: the CPU computes in fp32, with the weights as they are stored")
        precision = None
    folder = resolve_model(model, path, revision, moe_policy=moe_policy, precision=precision, adapter=adapter)
    generator = TextGenerationPipeline(
        folder,
        given,
        named,
        batch_size,
        threads,
        precision,
        cache_bytes=cache_bytes,
        prefix_cache_bytes=prefix_cache_bytes,
        arguments=arguments,
    )
    if trusts_code and generator.tokenizer is not None and generator.tokenizer.is_code:
        raise RequestError(
            f"{model}: its tokenizer is code of its own (auto_map), which is not run here: without trust_remote_code"
            " its files are read, as in transformers"
        )
    return generator


def set_seed(seed: int) -> None:
    """Makes the next texts that are drawn without a seed of their own come again, as transformers' set_seed does.

    It sets Python's random generator and numpy's. transformers' own set_seed and random.seed have the same effect on
    neo-tf.

    Args:
        seed: A whole number from 0 to 2**32 - 1.
    """
    import random

    import numpy as np

    random.seed(seed)
    np.random.seed(seed)


def _of_generation(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those arguments of pipeline() that are for each call.

    Raises:
        RequestError: An argument that is neither for calls nor one of transformers' pipeline().
    """
    found = {}
    for name, value in arguments.items():
        if name in ARGUMENTS or name in OLD_NAMES or name in LEFT_OUT or name in ("generation_config", "return_type"):
            found[name] = value
        elif name not in NO_EFFECT and name not in _NO_EFFECT and value not in (None, {}, ()):
            raise RequestError(f"pipeline() does not take {name}")
    return found


def _device(device: str | int | None, device_map: Any) -> str | int | None:
    """The device that device or device_map names; None for the folder's own.

    Raises:
        RequestError: Both are given, or the map names several devices, or a way to divide a model.
    """
    if device_map is None:
        return _named(device)
    if device is not None:
        raise RequestError("device and device_map are both given: one of them is enough")
    if isinstance(device_map, dict):
        devices = list(dict.fromkeys(device_map.values()))
        if len(devices) != 1:
            raise RequestError(f"device_map must name one device, not {device_map!r}: a model is not divided")
        device_map = devices[0]
    if isinstance(device_map, str) and device_map in ("balanced", "balanced_low_0", "sequential"):
        raise RequestError(f"device_map {device_map!r} divides a model over devices; neo-tf runs on one: give device=")
    return None if device_map == "auto" else _named(device_map)


def _named(device: Any) -> str | int | None:
    """torch.device("cuda", 0) and the like, as a text."""
    return device if isinstance(device, str | int | None) else str(device)


def _precision(precision: str | None, dtype: Any, torch_dtype: Any) -> str | None:
    """The precision that transformers' dtype names, or that is given.

    Raises:
        RequestError: Two of them contradict each other, or a dtype is unknown.
    """
    found = precision
    for name, value in (("dtype", dtype), ("torch_dtype", torch_dtype)):
        if value is None:
            continue
        last = str(value).rpartition(".")[2]
        if last not in _PRECISIONS:
            raise RequestError(f"{name} must be one of {', '.join(_PRECISIONS)}, not {value!r}")
        meant = _PRECISIONS[last]
        if meant and found and meant != found:
            raise RequestError(f"{name} {last} means precision {meant}, but {found} is given, too")
        found = found or meant
    return found

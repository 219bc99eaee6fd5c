"""The Hugging Face-shaped front: pipeline("text-generation", model=…), as the model cards call it."""

from __future__ import annotations

from pathlib import Path

from neo_tf.errors import RequestError
from neo_tf.model_cache import resolve_model
from neo_tf.runtime.pipeline import TASK, TextGenerationPipeline


def pipeline(
    task: str = TASK,
    model: Path | str | None = None,
    *,
    tokenizer: Path | str | None = None,
    revision: str | None = None,
    moe_policy: str | None = None,
    device: str | int | None = None,
    batch_size: int = 8,
    threads: int | None = None,
    precision: str | None = None,
    cache_bytes: int | None = None,
    prefix_cache_bytes: int | None = None,
) -> TextGenerationPipeline:
    """Makes a text generator.

    Args:
        task: "text-generation".
        model: An ONNX folder, a checkpoint in any format (it is exported into the cache once), or a hub id.
        tokenizer: A tokenizer.json or a folder that holds one; the model's own where None.
        revision: A branch, tag or commit of a hub id.
        moe_policy: See neo_tf.open_checkpoint.
        device: "cpu", "cuda", "cuda:N", or transformers' -1, 0, 1, ...; the device that the model was exported for
            where None.
        batch_size: The number of sequences that are decoded together.
        threads: The number of CPU threads; ONNX Runtime chooses it where None.
        precision: One of an ONNX folder's precisions, its first one where None; or the precision that a checkpoint is
            exported in, fp32 where None.
        cache_bytes, prefix_cache_bytes: The memory that the caches may take, in bytes; see Engine.

    Returns:
        A TextGenerationPipeline.

    Raises:
        RequestError: The task is another one, or no model is given.
        NeoTFError: See neo_tf.model_cache.resolve_model and Session.

    Example:
        >>> generator = pipeline("text-generation", model="EleutherAI/gpt-neo-125M")
        >>> generator("EleutherAI has", do_sample=True, min_length=50)
        [{'generated_text': 'EleutherAI has ...'}]
    """
    if task != TASK:
        raise RequestError(f"unknown task {task!r} (known: {TASK})")
    if model is None:
        raise RequestError("no model given: name a folder or a hub id")
    if batch_size < 1:
        raise RequestError(f"batch_size must be at least 1, not {batch_size}")
    folder = resolve_model(model, tokenizer, revision, moe_policy=moe_policy, precision=precision)
    return TextGenerationPipeline(
        folder,
        tokenizer,
        device,
        batch_size,
        threads,
        precision,
        cache_bytes=cache_bytes,
        prefix_cache_bytes=prefix_cache_bytes,
    )

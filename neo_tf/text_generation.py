"""The Hugging Face-shaped front: pipeline("text-generation", model=…), as the model cards call it."""

from neo_tf.errors import RequestError
from neo_tf.model_cache import resolve_model
from neo_tf.runtime.pipeline import TASK, TextGenerationPipeline


def pipeline(
    task=TASK,
    model=None,
    *,
    tokenizer=None,
    revision=None,
    moe_policy=None,
    device=None,
    batch_size=8,
    threads=None,
    precision=None,
    cache_bytes=None,
    prefix_cache_bytes=None,
):
    """A text generator.

    Args:
        task: "text-generation".
        model: an ONNX folder, a checkpoint in any format (exported into the cache once), or a hub id.
        tokenizer: a tokenizer.json or a folder that holds one; otherwise the model's own.
        revision: of a hub id.
        moe_policy: see neo_tf.open_checkpoint.
        device: None (what the model was exported for), "cpu", "cuda", "cuda:N", or transformers' -1, 0, 1, ...
        batch_size: sequences that are decoded together.
        threads: CPU threads; ONNX Runtime's choice where None.
        precision: one of an ONNX folder's, its first where None; or what a checkpoint is exported in, fp32 where None.
        cache_bytes, prefix_cache_bytes: memory of the caches at most; see Engine.

    Returns:
        A TextGenerationPipeline.

    Raises:
        RequestError: another task, or no model.
        NeoTFError: see neo_tf.model_cache.resolve_model and Session.

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
    memory = {"cache_bytes": cache_bytes, "prefix_cache_bytes": prefix_cache_bytes}
    return TextGenerationPipeline(folder, tokenizer, device, batch_size, threads, precision, **memory)

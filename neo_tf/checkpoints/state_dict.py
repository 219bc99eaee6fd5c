"""The names of a torch state dict: prefixes of wrappers are taken off, and what is not GPT-Neo's is left out."""

import re
from collections.abc import Iterable

from neo_tf.errors import CheckpointError

# What wraps a whole model puts its name before all names: DataParallel and DeepSpeed, torch.compile, PEFT, TRL,
# Lightning.
_PREFIXES = ("module.", "_orig_mod.", "base_model.model.", "pretrained_model.", "_forward_module.", "model.")
# What may wrap parts of a model puts its name inside: torch.compile, FSDP, activation checkpointing.
_INSIDE = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Heads beside the language model's: TRL's value heads, and transformers' for classification and question answering.
_HEADS = ("v_head.", "v_heads.", "value_head.", "score.", "classifier.", "qa_outputs.")
_OWN = ("transformer.", "lm_head.weight", "wte.", "wpe.", "h.", "ln_f.")  # how GPT-Neo's own names begin
_OWN_INSIDE = re.compile(r"(^|\.)(transformer\.|h\.\d+\.|wte\.|wpe\.|ln_f\.|lm_head\.weight)")
_UNMERGED = re.compile(r"\.(base_layer|lora_[A-Za-z_]+)(\.|$)")
# Causal masks that older transformers versions saved with the weights.
_BUFFER = re.compile(r"\.attn\.attention\.(bias|masked_bias)$")


def without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """{stored name: the name without what wrappers put before it or inside}.

    A prefix is taken off where all names have it; only heads beside the language model's may lack it.
    """
    stored = list(names)
    bare = [_INSIDE.sub("", name) for name in stored]
    while True:
        own = [name for name in bare if not name.startswith(_HEADS)]
        prefix = next((p for p in _PREFIXES if own and all(name.startswith(p) for name in own)), None)
        if prefix is None:
            return dict(zip(stored, bare, strict=True))
        bare = [name.removeprefix(prefix) for name in bare]


def is_buffer(name: str) -> bool:
    """Whether a name is that of a causal mask, which is no weight."""
    return _BUFFER.search(name) is not None


def is_beside_the_model(name: str) -> bool:
    """Whether a name is that of another head, which the language model does not need.

    A name that holds one of GPT-Neo's own names is not: something is wrong with such a name.
    """
    return not name.startswith(_OWN) and (name.startswith(_HEADS) or not _OWN_INSIDE.search(name))


def refuse_unmerged(where: object, names: Iterable[str]) -> None:
    """Raises a CheckpointError where the names are those of a model with LoRA matrices that were not merged."""
    found = next((name for name in names if _UNMERGED.search(name)), None)
    if found is not None:
        raise CheckpointError(
            f"{where}: holds LoRA matrices that are not merged into the weights ({found}): merge them with PEFT's "
            "merge_and_unload, or save the adapter by itself and name it with --adapter"
        )

"""Writing the model folder: two graphs, one data file, and the configs beside them."""

import contextlib
import json
from dataclasses import replace

from export.builder import WeightFile
from export.calibrate import Calibration
from export.graph import build_decoder, build_model, build_prefill
from export.precision import precision_for
from neo_tf.checkpoints import Checkpoint, open_checkpoint
from neo_tf.checkpoints.huggingface import CONFIG_FILE, write_tokenizer
from neo_tf.errors import RequestError
from neo_tf.onnx_folder import DATA_FILE, DECODER, MODEL, PREFILL, graph_files
from neo_tf.output import new_folder


def export_onnx(
    src, dst, precision="fp32", *, target=None, calibrate=None, n_vocab=None, force=False, progress=None, **opening
):
    """Exports a checkpoint as an ONNX folder; the weights are written one by one.

    Args:
        src: a Checkpoint, or what open_checkpoint opens.
        dst: the folder to write; appears whole or not at all.
        precision: "fp32", "fp16", "bf16", "int8" or "int4", or a list of them: one data file then holds all, what is
            equal once, and the first is the folder's own.
        target: "cpu" or "cuda"; by default cuda for fp16 and bf16, which CPUs have no kernels for, and otherwise cpu.
        calibrate: a text; int8 and int4 are then rounded so that the layers' outputs on it change least.
        n_vocab, force: see neo_tf.convert.
        progress: called as progress(name, bytes) after each tensor; the bytes add up to the checkpoint's.
        opening: tokenizer, config, revision, moe_policy: see open_checkpoint.

    Returns:
        The source as a Checkpoint.

    Raises:
        CheckpointError, ConfigError, OutputError: see neo_tf.convert.
        RequestError: an unknown precision or target, a precision that the target does not run, or a text to calibrate
            on that is too short, or that no precision rounds for.
    """
    precisions = _precisions(precision, target)
    if calibrate is not None and not any(precision.layers for precision in precisions.values()):
        raise RequestError(f"a text to calibrate on is for int8 and int4, not for {' and '.join(precisions)}")
    checkpoint = src if isinstance(src, Checkpoint) else open_checkpoint(src, **opening)
    if n_vocab is not None:
        checkpoint = checkpoint.with_vocab(n_vocab)
    calibration = None if calibrate is None else Calibration(checkpoint, calibrate)
    precisions = {name: replace(precision, calibration=calibration) for name, precision in precisions.items()}
    weights, graphs = WeightFile(DATA_FILE), {}
    files = graph_files(precisions)
    for name, precision in precisions.items():
        graphs[files[name, MODEL]] = build_model(checkpoint, weights, precision)
        graphs[files[name, DECODER]] = build_decoder(checkpoint, weights, precision)
        if precision.for_prompts:
            graphs[files[name, PREFILL]] = build_prefill(checkpoint, weights, precision.for_prompts)
    needs = weights.nbytes + (calibration.nbytes if calibration else 0)
    with new_folder(dst, force=force, needs=needs, source=checkpoint.path) as folder:
        checkpoint.verify()
        for name, model in graphs.items():
            (folder / name).write_bytes(model.SerializeToString())
        work = sum(weight.nbytes for weight in weights.weights.values())
        if calibration:
            work += calibration.work(sum(precision.layers is not None for precision in precisions.values()))
        progress = _shares(progress, checkpoint.nbytes / work)
        with calibration.inside(folder, progress) if calibration else contextlib.nullcontext():
            weights.write(folder / DATA_FILE, progress)
        _write_configs(checkpoint, folder, precisions)
    return checkpoint


def _precisions(names, target):
    """{name: Precision}, in order, of one target."""
    names = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    found = {name: precision_for(name, target) for name in names}
    if len({precision.target for precision in found.values()}) != 1:
        raise RequestError(f"{', '.join(found) or 'no precision'}: a folder is for one target: name it, cpu or cuda")
    return found


def _shares(progress, scale):
    """progress in parts of the source's bytes, which is what a caller knows beforehand."""
    return (lambda name, size: progress(name, size * scale)) if progress else (lambda name, size: None)


def _write_configs(checkpoint, folder, precisions):
    config = checkpoint.config.replace(precision="float32")
    target = next(iter(precisions.values())).target
    params = config.to_onnx() | {"precisions": list(precisions), "target": target}
    (folder / CONFIG_FILE).write_text(json.dumps(params, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(checkpoint, folder)
    (folder / "genai_config.json").write_text(json.dumps(_genai_config(config), indent=2) + "\n", encoding="utf-8")


def _genai_config(config):
    """What onnxruntime-genai reads; it knows no `gpt_neo`, and a plain `decoder` is what the graph is."""
    eos = config.eos_token_id if config.eos_token_id is not None else 0
    return {
        "model": {
            "type": "decoder",
            "vocab_size": config.n_vocab,
            "context_length": config.n_ctx,
            "bos_token_id": eos,
            "eos_token_id": eos,
            "pad_token_id": eos,
            "decoder": {
                "session_options": {"provider_options": []},
                "filename": f"{MODEL}.onnx",
                "hidden_size": config.n_embd,
                "num_hidden_layers": config.n_layer,
                "num_attention_heads": config.n_head,
                "num_key_value_heads": config.n_head,
                "head_size": config.head_size,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"max_length": config.n_ctx, "do_sample": False, "past_present_share_buffer": True},
    }

"""Writing the model folder: the graphs, one data file, and the configs beside them."""

import contextlib
import json
from dataclasses import replace

from neo_tf.atomic import new_folder
from neo_tf.checkpoints import Checkpoint, open_checkpoint
from neo_tf.checkpoints.huggingface import write_tokenizer
from neo_tf.errors import RequestError
from neo_tf.file_names import CONFIG_FILE
from neo_tf.onnx_folder import DATA_FILE, DECODER, MODEL, OPS, PREFILL, graph_files

from .builder import WeightFile
from .calibrate import Calibration
from .genai import genai_can_run, genai_config
from .graph import build_decoder, build_model, build_prefill
from .precision import TARGETS, precision_for


def export_onnx(
    src,
    dst,
    precision="fp32",
    *,
    target=None,
    ops="fused",
    calibrate=None,
    n_vocab=None,
    force=False,
    progress=None,
    **opening,
):
    """Exports a checkpoint as an ONNX folder; the weights are written one by one.

    Args:
        src: a Checkpoint, or what open_checkpoint opens.
        dst: the folder to write; appears whole or not at all.
        precision: "fp32", "fp16", "bf16", "int8" or "int4", or a list of them: one data file then holds all, what is
            equal once, and the first is the folder's own.
        target: "cpu" or "cuda"; by default cuda for fp16 and bf16, which CPUs have no kernels for, and otherwise cpu.
        ops: "fused", with ONNX Runtime's own operators, or "standard": model.onnx alone, in operators of the ONNX
            standard, for other runtimes; for target cpu.
        calibrate: a text; int8 and int4 are then rounded so that the layers' outputs on it change least.
        n_vocab, force: see neo_tf.convert.
        progress: called as progress(bytes, name) after each tensor; the bytes add up to the checkpoint's.
        opening: tokenizer, config, revision, moe_policy: see open_checkpoint.

    Returns:
        The source as a Checkpoint.

    Raises:
        CheckpointError, ConfigError, OutputError: see neo_tf.convert.
        RequestError: an unknown precision, target or ops, a precision that they do not run, or a text to calibrate on
            that is too short, or that no precision rounds for.
    """
    precisions = _precisions(precision, target, ops)
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
        if precision.standard:
            continue
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


def _precisions(names, target, ops):
    """{name: Precision}, in order, of one target."""
    if ops not in OPS:
        raise RequestError(f"unknown ops {ops!r} (known: {', '.join(OPS)})")
    names = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    found = {name: precision_for(name, target) for name in names}
    if len({precision.target for precision in found.values()}) != 1:
        together = " and ".join(names)
        common = set.intersection(*(set(TARGETS[name]) for name in names)) if names else ()
        hint = f"name the target {min(common)}" if common else "no target runs them together"
        raise RequestError(f"{together or 'no precision'}: a folder is for one target: {hint}")
    if ops == "fused":
        return found
    if any(precision.target != "cpu" for precision in found.values()):
        raise RequestError(f"ops standard is for target cpu: {', '.join(names)} in operators that are made for cuda")
    return {name: replace(precision, standard=True) for name, precision in found.items()}


def _shares(progress, scale):
    """progress in parts of the source's bytes, which is what a caller knows beforehand."""
    return (lambda name, size: progress(size * scale, name)) if progress else (lambda name, size: None)


def _write_configs(checkpoint, folder, precisions):
    config = checkpoint.config.replace(precision="float32")
    first = next(iter(precisions.values()))
    params = config.to_onnx() | {"precisions": list(precisions), "target": first.target}
    params |= {"ops": "standard"} if first.standard else {}
    (folder / CONFIG_FILE).write_text(json.dumps(params, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(checkpoint, folder)
    if genai_can_run(config):
        text = json.dumps(genai_config(config, first.standard), indent=2) + "\n"
        (folder / "genai_config.json").write_text(text, encoding="utf-8")

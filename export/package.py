"""Writing the ONNX folder: the graphs, one data file, and the configs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from neo_tf.atomic import new_folder
from neo_tf.checkpoints import Checkpoint, open_checkpoint
from neo_tf.checkpoints.model_files import write_files
from neo_tf.checkpoints.open import OpenOptions
from neo_tf.errors import RequestError
from neo_tf.file_names import CONFIG_FILE, GENERATION_CONFIG_FILE
from neo_tf.onnx_folder import DATA_FILE, DECODER, ENCODER, MODEL, OPS, PRECISION_TARGETS, PREFILL, graph_files
from neo_tf.progress import Progress, no_progress

from .builder import WeightFile
from .calibrate import Calibration
from .genai import genai_can_run, genai_config
from .graph import build_decoder, build_encoder, build_model, build_prefill
from .precision import Precision, precision_for

if TYPE_CHECKING:
    from onnx import ModelProto


def export_onnx(
    src: Checkpoint | Path | str,
    dst: Path | str,
    precision: str | Sequence[str] = "fp32",
    *,
    target: str | None = None,
    ops: str = "fused",
    calibrate: str | None = None,
    n_vocab: int | None = None,
    force: bool = False,
    allow_nan: bool = False,
    progress: Progress | None = None,
    **opening: Unpack[OpenOptions],
) -> Checkpoint:
    """Exports a checkpoint as an ONNX folder; the weights are written one by one.

    Args:
        src: A Checkpoint, or anything that open_checkpoint opens.
        dst: The folder to write. It appears when it is complete, or not at all.
        precision: "fp32", "fp16", "bf16", "int8" or "int4", or a list of them. The folder then holds all of them; the
            first is the folder's default, and tensors that several of them share are stored once.
        target: "cpu" or "cuda". By default "cuda" for fp16 and bf16, which have no fast kernels on CPUs, and "cpu" for
            the others.
        ops: "fused" for graphs with ONNX Runtime's own operators, or "standard" for model.onnx alone, in operators of
            the ONNX standard, for other runtimes. "standard" needs the target "cpu".
        calibrate: A text. The matrices of int8 and int4 are rounded so that the layers' outputs on this text change
            least; by default each weight is rounded to the nearest.
        n_vocab: Trims a padded vocabulary to this number of tokens; by default all are kept.
        force: Whether to replace dst where it exists.
        allow_nan: Whether weights that hold NaN or Inf are written in fp32, fp16 and bf16. By default they are refused
            by name. Integers cannot hold them.
        progress: Called after each tensor with its share of the source's bytes and its name; the amounts add up to
            the checkpoint's nbytes.
        opening: tokenizer, config, revision and moe_policy; see open_checkpoint.

    Returns:
        The source as a Checkpoint.

    Raises:
        CheckpointError, ConfigError, OutputError: See neo_tf.convert.
        RequestError: The precision, the target or ops is unknown; the target or ops does not run the precision; the
            text to calibrate on is too short, or none of the precisions is rounded; or NaN is allowed in one that is.
    """
    precisions = _precisions(precision, target, ops)
    if calibrate is not None and not any(precision.layers for precision in precisions.values()):
        raise RequestError(f"a text to calibrate on is for int8 and int4, not for {' and '.join(precisions)}")
    if allow_nan and any(precision.layers or precision.ends for precision in precisions.values()):
        raise RequestError(f"NaN and Inf are allowed in fp32, fp16 and bf16 alone, not in {' and '.join(precisions)}")
    source = src if isinstance(src, Checkpoint) else open_checkpoint(src, **opening)
    if n_vocab is not None:
        source = source.with_vocab(n_vocab)
    checkpoint = source if allow_nan else source.refusing_nan()
    calibration = None if calibrate is None else Calibration(checkpoint, calibrate)
    precisions = {name: replace(precision, calibration=calibration) for name, precision in precisions.items()}
    weights = WeightFile(DATA_FILE)
    graphs = _build_graphs(checkpoint, weights, precisions)
    needs = weights.nbytes + (calibration.nbytes if calibration else 0)
    with new_folder(dst, force=force, needs=needs, source=checkpoint.path) as folder:
        checkpoint.verify()
        for file, model in graphs.items():
            (folder / file).write_bytes(model.SerializeToString())
        work = sum(weight.nbytes for weight in weights.weights.values())
        if calibration:
            work += calibration.work(sum(precision.layers is not None for precision in precisions.values()))
        scaled = _scaled(progress or no_progress, checkpoint.nbytes / work)
        with calibration.inside(folder, scaled) if calibration else contextlib.nullcontext():
            weights.write(folder / DATA_FILE, scaled)
        _write_configs(checkpoint, folder, precisions)
    return source


def _precisions(names: str | Sequence[str], target: str | None, ops: str) -> dict[str, Precision]:
    """Returns {name: Precision}, in order; all have one target."""
    if ops not in OPS:
        raise RequestError(f"unknown ops {ops!r} (known: {', '.join(OPS)})")
    names = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    if not names:
        raise RequestError(f"no precision is given: name at least one of {', '.join(PRECISION_TARGETS)}")
    found = {name: precision_for(name, target) for name in names}
    if len({precision.target for precision in found.values()}) != 1:
        together = " and ".join(names)
        common = set.intersection(*(set(PRECISION_TARGETS[name]) for name in names))
        hint = f"name the target {min(common)}" if common else "no target runs them together"
        raise RequestError(f"{together}: a folder is for one target: {hint}")
    if ops == "fused":
        return found
    if any(precision.target != "cpu" for precision in found.values()):
        raise RequestError(f"ops standard is for target cpu: {', '.join(names)} in operators that are made for cuda")
    return {name: replace(precision, standard=True) for name, precision in found.items()}


def _build_graphs(
    checkpoint: Checkpoint, weights: WeightFile, precisions: Mapping[str, Precision]
) -> dict[str, ModelProto]:
    """Builds the folder's graphs, {file name: model}, and plans their weights."""
    files = graph_files(precisions)
    graphs = {}
    for name, precision in precisions.items():
        graphs[files[name, MODEL]] = build_model(checkpoint, weights, precision)
        if precision.standard:
            continue
        graphs[files[name, DECODER]] = build_decoder(checkpoint, weights, precision)
        if precision.for_prompts:
            graphs[files[name, PREFILL]] = build_prefill(checkpoint, weights, precision.for_prompts)
        graphs[files[name, ENCODER]] = build_encoder(checkpoint, weights, precision)
    return graphs


def _scaled(progress: Progress, scale: float) -> Progress:
    """A progress callback that passes the amounts on, multiplied by `scale`.

    It turns bytes of the written tensors into bytes of the source, whose sum a caller knows beforehand.
    """

    def scaled(amount: float, what: str = "") -> None:
        progress(amount * scale, what)

    return scaled


def _write_configs(checkpoint: Checkpoint, folder: Path, precisions: Mapping[str, Precision]) -> None:
    """Writes config.json, the model's files, and genai_config.json where onnxruntime-genai can run the model."""
    config = checkpoint.config.replace(precision="float32")
    first = next(iter(precisions.values()))
    params = config.to_onnx() | {
        "precisions": list(precisions),
        "target": first.target,
        "windowed_caches": first.windowed_caches,
    }
    if first.standard:
        params["ops"] = "standard"
    (folder / CONFIG_FILE).write_text(json.dumps(params, indent=2) + "\n", encoding="utf-8")
    write_files("onnx", checkpoint, folder)
    if genai_can_run(config):
        ids = json.loads(checkpoint.files[GENERATION_CONFIG_FILE]) if GENERATION_CONFIG_FILE in checkpoint.files else {}
        text = json.dumps(genai_config(config, first.standard, ids), indent=2) + "\n"
        (folder / "genai_config.json").write_text(text, encoding="utf-8")

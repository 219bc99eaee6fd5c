"""What lies in an ONNX folder: the contract between export and runtime."""

from pathlib import Path

from neo_tf.config import GPTNeoConfig
from neo_tf.errors import ConfigError, RequestError
from neo_tf.file_names import CONFIG_FILE
from neo_tf.json_files import read_json

FORMAT = 2  # changes with what the runtime asks of the graphs
DATA_FILE = "model.onnx_data"  # the weights of all graphs
MODEL, DECODER, PREFILL = "model", "decoder", "prefill"  # for everyone; for our runtime; for its prompts
DECODER_FILE = f"{DECODER}.onnx"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
OPS = ("fused", "standard")  # ONNX Runtime's own operators too, or those of the ONNX standard alone


def graph_files(precisions, kinds=(MODEL, DECODER, PREFILL)):
    """{(precision, kind): file name}; the first precision is the folder's own, others are named: model_int8.onnx."""
    return {
        (precision, kind): f"{kind}_{precision}.onnx" if number else f"{kind}.onnx"
        for number, precision in enumerate(precisions)
        for kind in kinds
    }


def graph_path(folder, precision, kind):
    """Path of the graph of a kind in one of a folder's precisions; prefill's need not be there."""
    return Path(folder) / graph_files(read_precisions(folder)[0])[precision, kind]


def read_config(folder):
    """The GPTNeoConfig of a folder. Raises ConfigError as GPTNeoConfig.from_file does."""
    return GPTNeoConfig.from_file(Path(folder) / CONFIG_FILE)


def read_precisions(folder):
    """(names of a folder's precisions, the target that it was exported for).

    Raises:
        ConfigError: config.json cannot be read, or says something else there.
    """
    path = Path(folder) / CONFIG_FILE
    params = read_json(path)
    precisions, target = params.get("precisions", ["fp32"]), params.get("target", "cpu")
    if not isinstance(precisions, list) or not precisions or not set(map(str, precisions)) <= set(PRECISIONS):
        raise ConfigError(f"{path}: precisions must be a list of {', '.join(PRECISIONS)}, not {precisions!r}")
    if target not in ("cpu", "cuda"):
        raise ConfigError(f"{path}: target must be cpu or cuda, not {target!r}")
    return precisions, target


def find_precision(folder, precision=None):
    """(precision, target) of a folder: its own, or the one that was asked for.

    Raises:
        RequestError: the folder has no such precision.
    """
    there, target = read_precisions(folder)
    if precision is not None and precision not in there:
        raise RequestError(f"{folder}: exported in {' and '.join(there)}, not in {precision}")
    return precision or there[0], target


def is_standard(folder):
    """Whether a folder was exported in operators of the ONNX standard: model.onnx alone, for other runtimes."""
    folder = Path(folder)
    if not (folder / f"{MODEL}.onnx").is_file() or not (folder / CONFIG_FILE).is_file():
        return False
    return read_json(folder / CONFIG_FILE).get("ops") == "standard"

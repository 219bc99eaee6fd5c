"""Folders for CUDA that the CPU provider runs exactly: the graphs and caches of target cuda, in float32.

It is no option of the export: on CUDA, GroupQueryAttention has no kernel for float32.
"""

from unittest import mock

import neo_tf
from neo_tf import onnx_folder


def export_cuda_layout(source, folder, precision="fp32", **options):
    """Exports a checkpoint for CUDA, in fp32 too. Give a Session of the folder device="cpu".

    Args:
        source: A Checkpoint, or anything that export_onnx takes.
        folder: The folder to write.
        precision: The precision, or a list of them.
        options: Other arguments of export_onnx.

    Returns:
        The folder.
    """
    with mock.patch.dict(onnx_folder.PRECISION_TARGETS, fp32=("cpu", "cuda")):
        neo_tf.export_onnx(source, folder, precision, target="cuda", **options)
    return folder

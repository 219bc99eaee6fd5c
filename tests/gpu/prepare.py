"""Makes the ONNX folder of a published shape, with random weights, for CUDA: `python prepare.py SIZE FOLDER`."""

import sys

from neo_tf import export_onnx
from neo_tf.checkpoints.initialise import random_checkpoint

if __name__ == "__main__":
    size, folder = sys.argv[1:]
    export_onnx(random_checkpoint(size), folder, ["fp16", "int8"], target="cuda", force=True)
    print(f"{folder} has been made", flush=True)

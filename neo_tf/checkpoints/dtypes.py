"""The types that the tensors of a checkpoint may have."""

import ml_dtypes
import numpy as np

# A type's name in a config -> the type.
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def dtype_name(dtype: np.dtype) -> str:
    """The key of DTYPES whose value is `dtype`.

    Raises:
        ValueError: The type is not one of DTYPES.
    """
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    raise ValueError(f"type {dtype} is not one of {', '.join(DTYPES)}")

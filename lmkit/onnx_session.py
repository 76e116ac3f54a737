"""A session of ONNX Runtime on the processor, as fast as it can be; without torch."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["open_session"]

# Joins a sum and a normalization into one operator, which on a CPU takes three to four times as
# long as the two (ONNX Runtime 1.32).
_SLOWER = ["SkipLayerNormFusion"]


def open_session(path: str | os.PathLike[str], threads: int) -> Any:
    """Open an ONNX file.

    Args:
        path: of the file.
        threads: of one run, at least 1.

    Raises:
        ImportError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            f"{path} runs in ONNX Runtime, which needs the extra: pip install 'lmkit[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER
    )

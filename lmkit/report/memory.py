"""How much memory a model takes to be loaded and run, in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .onnx_runner import OnnxRunner, onnx_file

__all__ = ["main", "peak_memory", "resident_memory"]

_CODE = "from lmkit.report.memory import main; main()"


def peak_memory(
    folder: str | os.PathLike[str], shapes: Sequence[tuple[int, int]], threads: int
) -> int:
    """Return the bytes that a process needs for a model: loading it, and one run of each shape.

    That is the most that the process ever held, less what it held before the model came, which is
    Python with its libraries. A process of its own, since one that has run other models holds on
    to memory that they have left.

    Args:
        folder: of an export, with an ONNX file or without.
        shapes: rows and tokens of the runs.
        threads: of the process.

    Raises:
        RuntimeError: the process failed; has its last words.
    """
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)}
    wanted = json.dumps([str(folder), list(shapes), threads])
    done = subprocess.run(
        [sys.executable, "-c", _CODE, wanted],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RuntimeError(f"the memory of {folder} could not be measured: {last}")
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


def resident_memory(peak: bool = False) -> int:
    """Return the bytes of memory that this process holds, or the most that it ever held.

    Linux counts these for the program that runs. What `getrusage` says goes back to the process
    that started it, and is taken only where there is nothing else.
    """
    name = "VmHWM:" if peak else "VmRSS:"
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024
    except (OSError, StopIteration):
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Load and run a model, and print what that took; run by `peak_memory`.

    Args:
        arguments: folder, shapes and threads as JSON; those of the process by default.
    """
    folder, shapes, threads = json.loads((arguments or sys.argv[1:])[0])
    if onnx_file(folder) is not None:
        # Imported before it counts, as torch is below.
        import onnxruntime  # noqa: F401

        before = resident_memory()
        runner = OnnxRunner(folder, threads)
        for rows, length in shapes:
            runner.run(runner.example(rows, length))
    else:
        import torch

        from ..loading import load
        from .contenders import example_inputs

        torch.set_num_threads(threads)
        before = resident_memory()
        module = load(folder)
        with torch.inference_mode():
            for rows, length in shapes:
                module.network(**example_inputs(module, rows, length))
    sys.stdout.write(json.dumps({"bytes": resident_memory(peak=True) - before}) + "\n")

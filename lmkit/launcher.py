"""Settings of the process that training on a CPU profits from; to be made before torch is there."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["available_cores", "tune_process"]

# Of glibc's mallopt: what is freed stays with the process, and large blocks come from its heap.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

_ENVIRONMENT = {
    # A thread that has nothing to do sleeps: on a machine with other work, waiting threads that
    # spin slow down those that compute, 4.6 times on two contended cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    # torch asks for huge pages for its large tensors.
    "THP_MEM_ALLOC_ENABLE": "1",
}


def tune_process() -> bool:
    """Set threads, pages and allocator of this process for training on a CPU.

    The command `lmkit fit` does this by itself; `--cpu_tuning=false` leaves it out. In a script it
    is to be called before torch is imported, for the library of threads reads its settings once.
    What the environment says already stays. The process keeps the memory that it had at its peak.

    Returns:
        Whether all of it took effect: torch was not there yet, and the allocator is glibc's.

    Example:
        >>> isinstance(tune_process(), bool)
        True
    """
    early = "torch" not in sys.modules
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return _keep_memory() and early


def available_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _keep_memory() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))

"""Memory of a CPU process: keep what is freed instead of fetching it anew from the system."""

from __future__ import annotations

import ctypes
import logging

log = logging.getLogger(__name__)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next allocation of this process.

    By default glibc maps every large tensor afresh, and the system clears its pages one by one: for logits that takes
    longer than the arithmetic on them. No effect on results, and none at all with another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    if not (mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1)):
        log.debug("the C library took no memory settings")

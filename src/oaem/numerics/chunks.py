"""Work in chunks of fixed size, shared among as many threads as torch is allowed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def for_each_chunk(work: Callable[[int], None], starts: range) -> None:
    """Call `work` on every start, on torch.get_num_threads() threads whose own torch operations use one thread each.

    The chunks do not depend on the number of threads, so as long as they are independent neither does the result.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(starts) == 1:
        for start in starts:
            work(start)
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(work, starts):
                pass
    finally:
        torch.set_num_threads(threads)

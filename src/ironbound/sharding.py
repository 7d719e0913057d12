"""Shards: ranges of examples whose results are computed side by side, and kept as they come."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import replace

import torch

from ironbound.bounding.precision import full_precision
from ironbound.store import Result, Shard, Store


def in_shards(
    work: Callable[[Shard], Result],
    count: int,
    length: int,
    device: torch.device,
    store: Store[Result] | None,
    seen: Callable[[list[Result]], None],
) -> list[Result]:
    """Computes the results of all shards that a store does not hold yet.

    Args:
        work: a pure function of a shard; on a CPU several run at a time, each on one thread.
        count: number of examples.
        length: examples per shard.
        device: where the work runs.
        store: keeps each result before `seen` hears of it, or None.
        seen: called once with what the store holds, then with each new result.

    Returns:
        The results in the order of the examples.
    """
    shards = [(start, min(start + length, count)) for start in range(0, count, length)]
    done = {} if store is None else store.results()
    seen(list(done.values()))
    # here, not only inside each shard: the settings are global, and threads would restore them under one another
    with full_precision(device), closing(_computed(work, [key for key in shards if key not in done], device)) as found:
        for key, result in found:
            if store is not None:
                store.put(key, result)
            done[key] = result
            seen([result])
    return [done[key] for key in shards]


def _computed(
    work: Callable[[Shard], Result], shards: list[Shard], device: torch.device
) -> Generator[tuple[Shard, Result], None, None]:
    """Runs the shards, on a CPU several at a time, each on one thread: their operators are too small to be split."""
    threads = torch.get_num_threads() if device.type == "cpu" and len(shards) > 1 else 1
    if threads == 1:
        yield from ((key, work(key)) for key in shards)
        return
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        futures = {pool.submit(work, key): key for key in shards}
        for future in as_completed(futures):
            result = future.result()
            seconds = {stage: spent / threads for stage, spent in result.seconds.items()}  # side by side: counted once
            yield futures[future], replace(result, seconds=seconds)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)

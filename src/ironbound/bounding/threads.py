"""Chunks on several threads: on a CPU the operators of one chunk are too small to be split, so whole chunks are."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from ironbound.bounding.memory import in_chunks, joined

Result = TypeVar("Result", bound="Tensor | tuple[Tensor, ...]")

_SHARE = 4  # chunks that a thread takes at a time


def over_examples(work: Callable[[slice], Result], count: int, length: int, device: torch.device) -> Result:
    """Runs `work` on slices of range(count), as `in_chunks` does, on as many threads as torch may use.

    Each thread computes with one: two threads inside such small operators were up to 40 times slower on a busy machine.
    With gradients, or off the CPU, everything runs in the calling thread.

    Args:
        work: a function of a slice of the examples.
        count: number of examples.
        length: examples per slice.
        device: where the work runs.

    Returns:
        What one call for all examples would have returned.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or torch.is_grad_enabled() or threads == 1 or count <= length:
        return in_chunks(work, count, _even(count, length))
    share = max(length, min(_SHARE * length, -(-count // threads)))

    def part(start: int) -> Result:
        with torch.inference_mode(torch.is_inference_mode_enabled()), torch.no_grad():
            size = min(share, count - start)
            return in_chunks(
                lambda piece: work(slice(start + piece.start, start + piece.stop)), size, _even(size, length)
            )

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            parts = list(pool.map(part, range(0, count, share)))
    finally:
        torch.set_num_threads(threads)
    return joined(parts)


def _even(count: int, length: int) -> int:
    """The length that cuts `count` into as many slices, all about equal: a short one costs almost as much as a full."""
    return -(-count // -(-count // length)) if count else length

"""The memory budget: how many rows fit, and what happens when they do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ironbound.errors import MemoryLimitError

Result = TypeVar("Result", bound="Tensor | tuple[Tensor, ...]")

DEFAULT_BUDGET = 2 << 30  # bytes
CACHE = 16 << 20  # bytes of rows at a time on a CPU; on `small` 3 to 32 MiB took the same time within noise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is torch's way to say that memory is short, on CPU or GPU."""
    # a part of the work that cannot be cut further may fit beside a smaller rest
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError | MemoryLimitError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "defaultcpuallocator" in text
    )


def chunk_length(bytes_each: int, budget: int | None, device: torch.device, group: int = 1) -> int:
    """How many items of `bytes_each` to work on at a time: what the budget holds, on a CPU no more than its cache.

    Gradients keep every intermediate result anyway, so that with them only the budget counts.

    Args:
        bytes_each: bytes that one item takes.
        budget: bytes in all, or None for the default.
        device: where the work runs.
        group: the result is a multiple of this.

    Returns:
        The number of items, at least `group`.
    """
    limit = DEFAULT_BUDGET if budget is None else budget
    if device.type == "cpu" and not torch.is_grad_enabled():
        limit = min(limit, CACHE)
    return max(1, limit // max(1, bytes_each * group)) * group


def in_chunks(work: Callable[[slice], Result], count: int, length: int) -> Result:
    """Runs `work` on slices of range(count) and joins what it returns; out of memory halves the slices and goes on.

    Args:
        work: a function of a slice of the items; its tensors have one entry per item on their first axis.
        count: number of items.
        length: items per slice.

    Returns:
        What one call for all items would have returned.

    Raises:
        MemoryLimitError: a single item does not fit.
        RuntimeError: an error of `work` that has nothing to do with memory, unchanged.
        MemoryError: passed on likewise; every known one counts as short memory.
    """
    parts: list = []
    done = 0
    while done < count or not parts:
        piece = slice(done, min(done + length, count))
        try:
            parts.append(work(piece))
        except (RuntimeError, MemoryError, MemoryLimitError) as error:
            if not is_out_of_memory(error):
                raise
            if length == 1 or piece.stop - piece.start <= 1:
                raise MemoryLimitError(
                    "one example alone does not fit into memory; use a cheaper method or a smaller network"
                ) from error
            length = max(1, (piece.stop - piece.start) // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        done = piece.stop
    return joined(parts)


def joined(parts: list[Result]) -> Result:
    """Tensors, or tuples of them, joined along their first axis."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)  # type: ignore[return-value, arg-type]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]

"""Which examples an epoch sees, in which order, and with which weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ironbound.training.recipe import Sampling


def seed_of(*numbers: int) -> int:
    """One seed out of several numbers, so that streams of randomness do not meet."""
    return int(np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_of(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator with such a seed: it depends on the numbers alone, so that a resumed run needs no state of it."""
    return torch.Generator(device).manual_seed(seed_of(*numbers))


def split_off(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Examples to train on, and examples for validation.

    Args:
        count: of all.
        share: of validation.
        seed: of the choice.

    Returns:
        Two rising index tensors.
    """
    size = round(count * share)
    if not size:
        return torch.arange(count), torch.arange(0)
    chosen = torch.randperm(count, generator=generator_of(seed, count))
    return chosen[size:].sort().values, chosen[:size].sort().values


@dataclass
class Order:
    """The examples of one epoch.

    Attributes:
        index: int64 [seen].
        weights: float [seen], or None where all count alike.
    """

    index: Tensor
    weights: Tensor | None

    def batches(self, size: int) -> list[slice]:
        """The order cut into batches; a single example left over joins the last one, as batch norm needs two.

        Args:
            size: examples per batch.

        Returns:
            Slices of the order.
        """
        count = len(self.index)
        starts = list(range(0, count, size))
        if len(starts) > 1 and size > 1 and count - starts[-1] == 1:
            starts.pop()
        return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], count], strict=True)]


class Sampler:
    """Shuffles, and with `easy = "skip"` leaves examples out whose last loss was small.

    An example stays with probability p = clip(loss / threshold, p_min, 1) and then counts 1 / p; the weights are scaled
    so that their mean is about 1: the weighted mean over those that stay estimates the mean over all.

    Args:
        sampling: the recipe's section.
        count: number of training examples.
        seed: of the shuffling; one stream over all epochs.
    """

    def __init__(self, sampling: Sampling, count: int, seed: int) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(seed)
        self.last = torch.full((count,), float("inf"))

    @property
    def weighs(self) -> bool:
        """Whether examples differ in weight."""
        return self._sampling.easy == "skip"

    def draw(self) -> Order:
        """The examples of the next epoch."""
        index = torch.randperm(len(self.last), generator=self._generator)
        if not self.weighs:
            return Order(index, None)
        chance = (self.last[index] / self._sampling.threshold).clamp(self._sampling.p_min, 1.0)
        stays = torch.rand(len(index), generator=self._generator) < chance
        stays[0] = True  # an epoch without any example has no meaning
        kept = int(stays.sum())
        return Order(index[stays], 1 / chance[stays] * (kept / len(index)))

    def seen(self, index: Tensor, losses: Tensor) -> None:
        """Notes the losses of examples."""
        self.last[index] = losses.to(self.last)

    def state_dict(self) -> dict[str, Tensor]:
        """For checkpoints."""
        return {"generator": self._generator.get_state(), "last": self.last}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """From a checkpoint."""
        self._generator.set_state(state["generator"])
        self.last = state["last"]

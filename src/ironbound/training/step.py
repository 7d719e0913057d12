"""One step's gradient: the batch is cut into parts, for several processes and several threads in each."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ironbound.bounding.precision import full_precision
from ironbound.capture import capture
from ironbound.errors import InputError
from ironbound.regions import ball
from ironbound.training import recipe as recipes
from ironbound.training.batch_norm import batch_statistics
from ironbound.training.losses import STEPWISE
from ironbound.training.losses.loss import refuse_dropout
from ironbound.training.options import option_names, parameters, table
from ironbound.training.order import generator_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

AT_POINTS = (
    "standard",
    "hinge",
    "pgd",
)  # losses of the network in training mode; all others bound the network as it is used


@dataclass(frozen=True)
class Batch:
    """The examples of a step.

    Attributes:
        inputs: [batch, *shape].
        labels: int64 [batch].
        weights: [batch], or None.
        time: epochs since the stage began, fractions included.
        seeds: numbers that belong to this step alone.
    """

    inputs: Tensor
    labels: Tensor
    weights: Tensor | None
    time: float
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Gradient:
    """What a step found.

    Attributes:
        gradients: one per parameter.
        value: the loss without regularizers.
        wrong: number of examples that the loss sees as wrong.
        each: loss of each example, [batch].
        parts: named terms; with several processes those of the first one's share.
    """

    gradients: list[Tensor]
    value: float
    wrong: int
    each: Tensor
    parts: Mapping[str, float]


class Stepper:
    """Computes gradients of a stage's objective: the loss plus weighted regularizers.

    The batch is cut into (processes x workers) parts of nearly equal length, whose gradients are summed by their share
    of the batch and always in the same order: the result does not depend on which thread is faster, and parts on
    threads give what the same parts on processes give. Losses are means over examples, so up to rounding the sum is the
    gradient of the whole batch; random starts of attacks, and regularizers that are no means, belong to the parts.

    Args:
        model: the network.
        recipe: for the region and the workers.
        plan: the stage.
        fabric: the processes.

    Raises:
        InputError: the network has dropout and the loss bounds it; or the batch would be cut, and batch norm, dropout
            or a solver that moves with each step needs all of it.
    """

    def __init__(self, model: nn.Module, recipe: recipes.Recipe, plan: recipes.Plan, fabric: Fabric) -> None:
        self.model, self._recipe, self._plan, self._fabric = model, recipe, plan, fabric
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._workers = recipe.run.workers
        self._pool: ThreadPoolExecutor | None = None
        self._two_modes = _has_two_modes(model)
        if self._workers * fabric.world_size > 1 and self._two_modes:
            raise InputError(
                "batch norm and dropout see the whole batch, so it cannot be cut: train this network with "
                "run.workers = 1 and one process."
            )
        stepwise = [name for name in (plan.loss.name, *(term.name for term in plan.regularizers)) if name in STEPWISE]
        if self._workers * fabric.world_size > 1 and stepwise:
            raise InputError(
                f"{stepwise[0]!r} moves its solver on with each step, so a batch cannot be cut: train with "
                "run.workers = 1 and one process."
            )
        if plan.loss.name not in AT_POINTS:
            refuse_dropout(model)

    def prepare(self, example: Tensor) -> None:
        """Gets the network into the stage's mode, and its graph into the cache before threads look for it.

        Args:
            example: [1, *shape].
        """
        bounds = self._plan.loss.name not in AT_POINTS
        self.model.train(not bounds and self._two_modes)
        if self._workers > 1 and self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, initializer=torch.set_num_threads, initargs=(1,))
            if bounds or self._plan.regularizers:
                capture(self.model, example)

    def close(self) -> None:
        """Ends the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def gradient(self, batch: Batch) -> Gradient:
        """The gradient of a batch over all threads and processes.

        Args:
            batch: the whole batch, the same in every process.

        Returns:
            The same in every process, but for `parts`.
        """
        count = self._workers * self._fabric.world_size
        pieces = _pieces(len(batch.labels), count)
        first = self._fabric.global_rank * self._workers
        mine = [index for index in range(first, first + self._workers) if pieces[index].start < pieces[index].stop]

        def work(index: int) -> _Part:
            with torch.enable_grad():
                return self._part(batch, pieces[index], index)

        if self._pool is None:
            found = [work(index) for index in mine]
        else:
            with full_precision(batch.inputs.device):  # entered once: the setting is one for all threads
                found = list(self._pool.map(work, mine))
        return self._reduced(batch, found)

    def _part(self, batch: Batch, piece: slice, index: int) -> _Part:
        plan, settings = self._plan, self._recipe.region
        eps = plan.eps(batch.time) if plan.loss.name != "standard" else 0.0
        region = ball(settings.norm, batch.inputs[piece], eps, settings.clip)
        labels = batch.labels[piece]
        generator = generator_of(*batch.seeds, index, device=batch.inputs.device)
        weights = None if batch.weights is None else batch.weights[piece]
        given = {"generator": generator, "weights": weights}
        name = plan.loss.name if eps > 0 else "standard"
        options = plan.loss.options(batch.time) if eps > 0 else {}
        bounds = plan.loss.name not in AT_POINTS
        statistics = batch_statistics(self.model, region.center) if bounds and self._two_modes else nullcontext()
        with statistics:
            function = table("loss")[name]
            loss = function(self.model, region, labels, **options, **_wanted(function, given))
            objective, terms = loss.value, dict(loss.parts)
            for term in plan.regularizers:
                weight = term.weight(batch.time)
                if weight == 0:
                    continue
                function = table("regularizer")[term.name]
                value = function(self.model, region, labels, **term.options(batch.time), **_wanted(function, given))
                objective = objective + weight * value
                terms[term.name] = value.item()
            share = (piece.stop - piece.start) / len(batch.labels)
            scaled = objective if share == 1 else objective * share
            gradients = torch.autograd.grad(scaled, self._parameters, allow_unused=True)
        each = loss.each if loss.each is not None else loss.value.detach().expand(len(labels))
        return _Part(piece, gradients, share * loss.value.item(), int(loss.wrong.sum()), each, terms)

    def _reduced(self, batch: Batch, found: Sequence[_Part]) -> Gradient:
        gradients: list[Tensor] = []
        for position, parameter in enumerate(self._parameters):
            terms = [part.gradients[position] for part in found]
            gradients.append(_sum([term for term in terms if term is not None], parameter))
        numbers = torch.zeros(2 + len(batch.labels), dtype=torch.float64, device=batch.inputs.device)
        for part in found:
            numbers[0] += part.value
            numbers[1] += part.wrong
            numbers[2:][part.piece] = part.each.detach().double()
        if self._fabric.world_size > 1:
            flat = self._summed(torch.cat([gradient.reshape(-1) for gradient in gradients]))
            sizes = [gradient.numel() for gradient in gradients]
            parts = flat.split(sizes)
            gradients = [part.view_as(old) for part, old in zip(parts, gradients, strict=True)]
            numbers = self._summed(numbers)
        value, wrong = numbers[:2].tolist()
        return Gradient(gradients, value, int(wrong), numbers[2:], _mean_parts(found))

    def _summed(self, tensor: Tensor) -> Tensor:
        result = self._fabric.all_reduce(tensor, reduce_op="sum")
        assert isinstance(result, Tensor)
        return result


@dataclass(frozen=True)
class _Part:
    piece: slice
    gradients: Sequence[Tensor | None]
    value: float
    wrong: int
    each: Tensor
    terms: Mapping[str, float]


def _pieces(length: int, count: int) -> list[slice]:
    """Slices of nearly equal length; the last ones are empty where there are more slices than examples."""
    short, longer = divmod(length, count)
    ends = [0]
    for index in range(count):
        ends.append(ends[-1] + short + (index < longer))
    return [slice(start, stop) for start, stop in zip(ends, ends[1:], strict=False)]


def _wanted(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What of the loop's own arguments a function takes."""
    names = parameters(function)
    return {name: value for name, value in given.items() if name in names and value is not None}


def _sum(terms: list[Tensor], like: Tensor) -> Tensor:
    if not terms:
        return torch.zeros_like(like)
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _mean_parts(found: Sequence[_Part]) -> dict[str, float]:
    """Terms averaged over the parts by their length."""
    length = sum(part.piece.stop - part.piece.start for part in found)
    names = dict.fromkeys(name for part in found for name in part.terms)
    return {
        name: sum(part.terms.get(name, 0.0) * (part.piece.stop - part.piece.start) for part in found) / length
        for name in names
    }


@contextmanager
def threads(count: int) -> Generator[None, None, None]:
    """PyTorch's own number of threads.

    Args:
        count: inside; afterwards it is what it was.

    Yields:
        Nothing.
    """
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _has_two_modes(model: nn.Module) -> bool:
    """Whether a layer acts differently in training and evaluation mode."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    return any(isinstance(part, kinds) for part in model.modules())


def stage_numbers(plan: recipes.Plan, time: float) -> dict[str, float]:
    """The numbers of a stage at a time, for the logs: options of the loss that are numbers, weights of regularizers.

    Args:
        plan: the stage.
        time: in epochs.

    Returns:
        Name → number.
    """
    known = option_names(table("loss")[plan.loss.name])
    options = {name: value for name, value in plan.loss.options(time).items() if name in known}
    numbers = {name: float(value) for name, value in options.items() if isinstance(value, (int, float))}
    return numbers | {f"weight.{term.name}": term.weight(time) for term in plan.regularizers}

"""The state of a run, and how it goes on by a step, an epoch, a stage; all of it can be saved at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ironbound.errors import TrainingError
from ironbound.training import checkpoint
from ironbound.training import recipe as recipes
from ironbound.training.artefact import RunFolder
from ironbound.training.augment import crop_and_flip
from ironbound.training.evaluation import evaluate
from ironbound.training.health import Health, require_finite
from ironbound.training.logs import Logs
from ironbound.training.losses.semidefinite import set_solver_state, solver_state
from ironbound.training.order import Order, Sampler, generator_of, seed_of
from ironbound.training.record import Epoch, Step
from ironbound.training.step import Batch, Gradient, Stepper, stage_numbers, threads

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Examples:
    """What there is to learn from: training and validation inputs [n, *shape] and labels [n]."""

    inputs: Tensor
    labels: Tensor
    validation_inputs: Tensor
    validation_labels: Tensor


@dataclass
class _Totals:
    """Sums over the steps of the epoch that goes on."""

    loss: float = 0.0
    wrong: int = 0
    seen: int = 0
    parts: dict[str, list[float]] = field(default_factory=dict)  # name: weighted sum, number of examples
    seconds: float = 0.0

    def add(self, found: Gradient, count: int) -> None:
        self.loss += found.value * count
        self.wrong += found.wrong
        self.seen += count
        for name, value in found.parts.items():
            before = self.parts.get(name, [0.0, 0.0])
            self.parts[name] = [before[0] + value * count, before[1] + count]


@dataclass
class _Position:
    """Where the run is: stages and epochs of this stage that are done, steps of this epoch that are done."""

    stage: int = 0
    epoch: int = 0
    step: int = 0


class Trainer:
    """Runs a recipe.

    Args:
        model: the network, on the processes' device.
        examples: likewise.
        recipe: the recipe.
        fabric: the processes.
        folder: of the run, or None.
    """

    def __init__(
        self, model: nn.Module, examples: Examples, recipe: recipes.Recipe, fabric: Fabric, folder: RunFolder | None
    ) -> None:
        self.model, self._examples, self._recipe, self._fabric = model, examples, recipe, fabric
        self._folder = folder
        self._plans = recipe.plans()
        self._at = _Position()
        self._totals = _Totals()
        self._order: Order | None = None
        self._epochs: list[Epoch] = []
        self._good = 0
        self._health = Health(recipe.run.collapse_epochs)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._sampler, self._optimizer = self._begin(self._plans[0])
        for plan in self._plans:  # a stage that cannot run is known at once, not after hours
            Stepper(model, recipe, plan, fabric)
        self._resume()

    def run(
        self, progress: Callable[[Epoch], None] | None, on_step: Callable[[Step], None] | None
    ) -> tuple[Epoch, ...]:
        """Goes on to the end.

        Args:
            progress: called after every epoch, in the first process.
            on_step: called after every step, in the first process.

        Returns:
            All epochs, those before a resumption included.
        """
        if self._fabric.world_size > 1:  # the same weights everywhere, whatever made them
            self.model.load_state_dict(self._fabric.broadcast(self.model.state_dict()))
        writes = self._folder is not None and self._fabric.is_global_zero
        logs = Logs(self._folder.path, self._recipe.run.tensorboard, len(self._epochs)) if writes else None  # type: ignore[union-attr]
        if not self._fabric.is_global_zero:
            progress = on_step = None
        try:
            while self._at.stage < len(self._plans):
                plan = self._plans[self._at.stage]
                number = self._at.stage
                with closing(Stepper(self.model, self._recipe, plan, self._fabric)) as stepper:
                    while self._at.stage == number:
                        stepper.prepare(self._examples.inputs[:1])
                        self._epoch(plan, stepper, on_step)
                        if logs is not None:
                            logs.write(self._epochs)
                        self._keep_epoch()
                        if progress is not None:
                            progress(self._epochs[-1])
        finally:
            if logs is not None:
                logs.close()
        self.model.eval()
        if writes:
            assert self._folder is not None
            self._folder.write_weights(self.model)
            self._folder.finish(len(self._epochs), self._fabric.world_size)
        return tuple(self._epochs)

    def _begin(self, plan: recipes.Plan) -> tuple[Sampler, torch.optim.Optimizer]:
        """What a stage begins with."""
        seed = self._recipe.run.seed
        number = self._at.stage
        sampler = Sampler(plan.sampling, len(self._examples.labels), seed_of(seed, number) if number else seed)
        settings, parameters = plan.optimizer, self._parameters
        if settings.name == "sgd":
            decay, momentum = settings.weight_decay, settings.momentum
            return sampler, torch.optim.SGD(parameters, settings.lr, momentum, weight_decay=decay)
        make = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
        return sampler, make(parameters, lr=settings.lr, weight_decay=settings.weight_decay)

    def _epoch(self, plan: recipes.Plan, stepper: Stepper, on_step: Callable[[Step], None] | None) -> None:
        """The rest of an epoch, and what follows it."""
        began = time.monotonic() - self._totals.seconds
        if self._order is None:
            self._order = self._sampler.draw()
        batches = self._order.batches(plan.batch_size)
        while self._at.step < len(batches):
            moment = self._at.epoch + self._at.step / len(batches)
            loss = self._step(plan, stepper, batches[self._at.step], moment)
            self._at.step += 1
            self._totals.seconds = time.monotonic() - began
            after = self._at.epoch + self._at.step / len(batches)
            if self._at.step < len(batches) and self._due(moment, after):
                self._save()
            if on_step is not None:
                done = len(self._epochs)
                on_step(Step(done + 1, sum(p.epochs for p in self._plans), done + after - self._at.epoch, loss))
        self._close_epoch(plan, len(batches), began)

    def _step(self, plan: recipes.Plan, stepper: Stepper, piece: slice, moment: float) -> float:
        """One step; returns its loss."""
        assert self._order is not None
        index = self._order.index[piece]
        rate = plan.optimizer.lr * plan.optimizer.schedule(moment)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        found = stepper.gradient(self._batch(piece, moment))
        when = f"epoch {len(self._epochs) + 1}"
        require_finite(found.value, found.gradients, when, self._last_good())
        for parameter, gradient in zip(self._parameters, found.gradients, strict=True):
            parameter.grad = gradient
        if plan.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, plan.optimizer.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._totals.add(found, len(index))
        if self._sampler.weighs:
            self._sampler.seen(index, found.each.cpu())
        return found.value

    def _batch(self, piece: slice, moment: float) -> Batch:
        assert self._order is not None
        device = self._examples.inputs.device
        index = self._order.index[piece].to(device)
        seeds = (self._recipe.run.seed, self._at.stage, self._at.epoch, self._at.step)
        inputs, labels = self._examples.inputs[index], self._examples.labels[index]
        data = self._recipe.data
        if data.augment != "none":
            inputs = crop_and_flip(inputs, data.padding, data.augment == "crop-flip", generator_of(*seeds))
        weights = None if self._order.weights is None else self._order.weights[piece].to(inputs)
        return Batch(inputs, labels, weights, moment, seeds)

    def _close_epoch(self, plan: recipes.Plan, steps: int, began: float) -> None:
        """Metrics, a look at the network's health, and the next position."""
        last = self._at.epoch + (steps - 1) / steps
        totals, number = self._totals, len(self._epochs) + 1
        self.model.eval()
        loss = totals.loss / totals.seen
        settled = plan.eps.settled(float(self._at.epoch)) or plan.loss.name == "standard"
        problem = self._health.check(self.model, self._examples.inputs, self._examples.labels, (loss, steps, settled))
        if problem is not None:
            raise TrainingError(
                f"training has collapsed by epoch {number}: {problem}; let ε grow more slowly, start from a trained "
                f'network, lower lr, or set model.initialisation = "ibp"; {self._last_good()}'
            )
        final = self._at.stage + 1 == len(self._plans) and self._at.epoch + 1 == plan.epochs
        every = self._recipe.evaluation.every
        due = final or (every > 0 and number % every == 0)
        found = None
        if due and len(self._examples.validation_labels):
            data = self._examples.validation_inputs, self._examples.validation_labels
            with threads(max(self._recipe.run.workers, torch.get_num_threads())):  # bounds use them by chunks
                found = evaluate(self.model, *data, self._recipe, self._fabric)
        self._epochs.append(
            Epoch(
                number,
                plan.name,
                0.0 if plan.loss.name == "standard" else plan.eps(last),
                plan.optimizer.lr * plan.optimizer.schedule(last),
                stage_numbers(plan, last),
                loss,
                totals.wrong / totals.seen,
                totals.seen,
                {name: total / count for name, (total, count) in totals.parts.items()},
                found,
                time.monotonic() - began,
            )
        )
        self._next(plan)

    def _next(self, plan: recipes.Plan) -> None:
        """The next epoch, or the next stage with a new optimiser, order and watch."""
        self._totals, self._order = _Totals(), None
        self._at = _Position(self._at.stage, self._at.epoch + 1)
        if self._at.epoch == plan.epochs and self._at.stage + 1 < len(self._plans):
            self._at = _Position(self._at.stage + 1)
            self._sampler, self._optimizer = self._begin(self._plans[self._at.stage])
            self._health = Health(self._recipe.run.collapse_epochs)
        elif self._at.epoch == plan.epochs:
            self._at = _Position(self._at.stage + 1)

    def _due(self, before: float, after: float) -> bool:
        every = self._recipe.run.checkpoint_every
        return math.floor(after / every) > math.floor(before / every)

    def _keep_epoch(self) -> None:
        """After an epoch: weights if the network is sound, and a checkpoint if it is due."""
        number = len(self._epochs)
        if not self._health.suspicious:
            self._good = number
        if self._folder is None or not self._fabric.is_global_zero:
            return
        if self._good == number:
            self._folder.write_weights(self.model)
        if self._at.epoch == 0 or self._due(self._at.epoch - 1, self._at.epoch):
            self._save()
            self._folder.write("running", number, self._fabric.world_size)

    def _last_good(self) -> str:
        if self._folder is None:
            return "no folder was given that would hold earlier weights."
        if not self._good:
            return "no good epoch was finished."
        return f"the weights of the last good epoch ({self._good}) are in {self._folder.path / 'weights.pth'}."

    def _save(self) -> None:
        if self._folder is None or not self._fabric.is_global_zero:
            return
        order = None if self._order is None else [self._order.index, self._order.weights]
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "sampler": self._sampler.state_dict(),
            "health": self._health.state_dict(),
            "at": vars(self._at),
            "totals": vars(self._totals),
            "order": order,
            "epochs": [epoch.plain() for epoch in self._epochs],
            "good": self._good,
            "solver": solver_state(self.model),
            "rng": checkpoint.rng_state(),
        }
        checkpoint.save(self._folder.checkpoint, state)

    def _resume(self) -> None:
        """Takes up the checkpoint of the folder, where there is one."""
        set_solver_state(self.model, None)  # nothing of an earlier run with this network
        if self._folder is None or not self._folder.checkpoint.is_file():
            return
        state = checkpoint.load(self._folder.checkpoint)
        self._at = _Position(**state["at"])
        if self._at.stage < len(self._plans):
            self._sampler, self._optimizer = self._begin(self._plans[self._at.stage])
            self._optimizer.load_state_dict(state["optimizer"])
            self._sampler.load_state_dict(state["sampler"])
        self.model.load_state_dict(state["model"])
        self._health.load_state_dict(state["health"])
        self._totals = _Totals(**state["totals"])
        self._order = None if state["order"] is None else Order(*state["order"])
        self._epochs = [Epoch.of(plain) for plain in state["epochs"]]
        self._good = state["good"]
        set_solver_state(self.model, state.get("solver"))
        checkpoint.set_rng_state(state["rng"])

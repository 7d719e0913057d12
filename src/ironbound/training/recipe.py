"""Recipes: everything that decides how a network is trained, as one validated value that a TOML file holds.

Sections hold fields; each field's description is its documentation (`ironbound train --explain`, docs/training.md).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ironbound.errors import InputError
from ironbound.training import toml
from ironbound.training.options import check_options, nearest, parsed_options, values_at
from ironbound.training.schedule import Constant, Schedule, extremes
from ironbound.training.sentences import sentence

FREE = ("title", "data.root", "run.checkpoint_every", "run.tensorboard")
"""Fields that do not change the result: a run may go on with other values of them."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Section(BaseModel):
    """A section of a recipe: unknown fields are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Model(Section):
    """The network, and what it starts from."""

    name: str | None = Field(default=None, description="architecture: small, large, mlp-2x100, …")
    options: dict[str, int] = Field(
        default={}, description="options of the architecture, such as {in_channels = 3, size = 32}"
    )
    factory: str | None = Field(
        default=None, description="instead of a name: path/module.py:function that makes the network"
    )
    weights: str | None = Field(
        default=None,
        description="state dict (with mean and std in front or without), or run folder, to start from; "
        "default: fresh weights",
    )
    initialisation: Literal["default", "ibp"] = Field(
        default="default", description="fresh weights: PyTorch's, or those of Shi et al. 2021 for interval bounds (ibp)"
    )
    mean: tuple[Finite, ...] | None = Field(
        default=None, description="mean of each channel, subtracted by a layer in front of the network"
    )
    std: tuple[Finite, ...] | None = Field(
        default=None, description="standard deviation of each channel, given with `mean`"
    )

    @model_validator(mode="after")
    def _check(self) -> Model:
        if self.name is not None and self.factory is not None:
            raise ValueError("name an architecture or a factory, not both")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give mean and std together")
        return self


class Data(Section):
    """The training data; ε is in their units as loaded (pixels in [0, 1])."""

    name: str | None = Field(
        default=None, description="digits, mnist, fashion-mnist, cifar10, svhn, har, or an .npz file"
    )
    root: str | None = Field(default=None, description="folder with the files; default: a cache, else a download")
    limit: int | None = Field(default=None, ge=1, description="only the first N examples")
    validation: float = Field(default=0.0, ge=0, lt=1, description="share split off for validation, never trained on")
    validation_seed: int = Field(default=0, ge=0, description="which examples are split off; apart from run.seed")
    augment: Literal["none", "crop", "crop-flip"] = Field(
        default="none",
        description="images moved by up to `padding` pixels at random (crop), and mirrored half the time (flip)",
    )
    padding: int = Field(default=4, ge=1, description="pixels of zeros around an image before a random crop")


class Region(Section):
    """What the attacker may do, in training and in evaluation."""

    norm: Literal["linf", "l2", "l1"] = Field(default="linf", description="norm of the perturbation")
    eps: float = Field(default=0.1, ge=0, allow_inf_nan=False, description="radius to be certified at the end")
    clip: tuple[Finite, Finite] | None = Field(
        default=None, description="range that inputs cannot leave, such as [0, 1]"
    )


class Loss(Section):
    """The loss, the ε it sees, and its options; numbers among the options may be schedules."""

    model_config = ConfigDict(extra="allow")
    name: str = Field(
        default="standard", description="standard, pgd, robust, interval, crown-ibp, sabr, mtl-ibp, …: see Losses"
    )
    eps: Schedule | None = Field(
        default=None, description="radius in training; default: region.eps. Where it is 0, training is standard"
    )

    @model_validator(mode="after")
    def _check(self) -> Loss:
        check_options("loss", self.name, self.__pydantic_extra__ or {})
        if self.eps is not None and extremes(self.eps)[0] < 0:
            raise ValueError("eps must not be negative")
        return self

    def options(self, time: float) -> dict[str, Any]:
        """The options at a time."""
        return values_at(parsed_options(self.__pydantic_extra__ or {}), time)


class Regularizer(Section):
    """A term that is added to the loss; its options stand beside its name."""

    model_config = ConfigDict(extra="allow")
    name: str = Field(description="tightness-d, tightness-r, shi, spectral, frobenius, …: see Regularizers")
    weight: Schedule = Field(description="factor of the term")

    @model_validator(mode="after")
    def _check(self) -> Regularizer:
        check_options("regularizer", self.name, self.__pydantic_extra__ or {})
        return self

    def options(self, time: float) -> dict[str, Any]:
        """The options at a time."""
        return values_at(parsed_options(self.__pydantic_extra__ or {}), time)


class Optimizer(Section):
    """How gradients change the weights."""

    name: Literal["adam", "adamw", "sgd"] = Field(default="adam", description="method")
    lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False, description="learning rate")
    schedule: Schedule = Field(
        default=Constant(kind="constant", value=1.0), description="factor of lr over time, such as linear from 1 to 0"
    )
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="weight decay")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of sgd")
    clip_norm: float | None = Field(
        default=None, gt=0, description="gradients longer than this (l2) are shortened to it"
    )

    @model_validator(mode="after")
    def _check(self) -> Optimizer:
        if extremes(self.schedule)[0] < 0:
            raise ValueError("schedule must not be negative")
        return self


class Sampling(Section):
    """Which examples an epoch sees."""

    easy: Literal["keep", "skip"] = Field(
        default="keep", description="skip: an example stays with probability p = loss / threshold and then counts 1 / p"
    )
    threshold: float = Field(
        default=0.1, gt=0, allow_inf_nan=False, description="loss from which on an example always stays"
    )
    p_min: float = Field(default=0.1, gt=0, le=1, description="smallest p")


class Evaluation(Section):
    """Metrics on the validation split."""

    every: int = Field(default=1, ge=0, description="epochs between evaluations; 0: only after the last")
    examples: int = Field(
        default=500, ge=1, description="validation examples for the attack and the proofs; clean: all"
    )
    attack_steps: int = Field(default=20, ge=1, description="steps of PGD")
    methods: tuple[str, ...] = Field(default=("interval", "dual"), description="bounds, best of them margin by margin")

    @model_validator(mode="after")
    def _check(self) -> Evaluation:
        from ironbound.bounding import EXACT, METHODS, find_method

        for method in self.methods:
            if find_method(method) is None:
                raise ValueError(f"method {method!r} is not known{nearest(method, (*METHODS, *EXACT))}")
        return self


class Run(Section):
    """Length, randomness and resources."""

    epochs: int = Field(default=10, ge=1, description="passes over the training examples")
    batch_size: int = Field(default=64, ge=1, description="examples per step, over all processes and workers together")
    seed: int = Field(default=0, ge=0, description="of fresh weights, order, attacks, augmentation, dropout")
    workers: int = Field(default=1, ge=1, description="CPU threads that share each batch")
    threads: int | None = Field(
        default=None, ge=1, description="threads inside an operator; default: 1 with several workers"
    )
    device: str = Field(default="auto", description="auto (a GPU if there is one), cpu, cuda")
    checkpoint_every: float = Field(
        default=1.0, gt=0, description="epochs between checkpoints; 0.1 makes ten per epoch"
    )
    collapse_epochs: int = Field(
        default=2,
        ge=0,
        description="stop after so many epochs of one answer for everything or of a stuck loss; 0: never",
    )
    tensorboard: bool = Field(default=False, description="also write TensorBoard logs (extra 'tensorboard')")


class Stage(Section):
    """A part of training; sections given here replace the recipe's, time and optimiser begin anew."""

    name: str | None = Field(default=None, description="for the logs")
    epochs: int | None = Field(default=None, ge=1, description="default: run.epochs")
    batch_size: int | None = Field(default=None, ge=1, description="default: run.batch_size")
    loss: Loss | None = Field(default=None, description="replaces [loss]")
    regularizer: tuple[Regularizer, ...] | None = Field(default=None, description="replaces [[regularizer]]")
    optimizer: Optimizer | None = Field(default=None, description="replaces [optimizer]")
    sampling: Sampling | None = Field(default=None, description="replaces [sampling]")


class Plan(BaseModel):
    """A stage with everything that it inherits."""

    model_config = ConfigDict(frozen=True)
    name: str
    epochs: int
    batch_size: int
    eps: Schedule
    loss: Loss
    regularizers: tuple[Regularizer, ...]
    optimizer: Optimizer
    sampling: Sampling


class Recipe(Section):
    """Everything that decides how a network is trained.

    Raises:
        InputError: a field is unknown or does not fit; the sentence names it.
    """

    title: str = Field(default="", description="one line for people")
    model: Model = Field(default=Model(), description="the network")
    data: Data = Field(default=Data(), description="the training data")
    region: Region = Field(default=Region(), description="the perturbations")
    loss: Loss = Field(default=Loss(), description="the loss")
    regularizer: tuple[Regularizer, ...] = Field(default=(), description="terms added to the loss")
    optimizer: Optimizer = Field(default=Optimizer(), description="the optimiser")
    sampling: Sampling = Field(default=Sampling(), description="which examples an epoch sees")
    evaluation: Evaluation = Field(default=Evaluation(), description="validation metrics")
    run: Run = Field(default=Run(), description="length, seed, resources")
    stage: tuple[Stage, ...] = Field(default=(), description="parts of training, one after the other")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(sentence(error, type(self))) from None

    @classmethod
    def read(cls, path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
        """Reads a TOML file.

        Args:
            path: of the file.
            overrides: "section.field=value", applied in turn; "stage.0.epochs=3" changes the first stage.

        Returns:
            The recipe.

        Raises:
            InputError: the file cannot be read, is not TOML, or a field does not fit.
        """
        values = toml.read(Path(path))
        for text in overrides:
            toml.override(values, text)
        return cls(**values)

    def override(self, *overrides: str) -> Recipe:
        """The recipe with fields changed, each written "section.field=value".

        Args:
            *overrides: as for `read`.

        Returns:
            A new recipe.
        """
        values = self.values()
        for text in overrides:
            toml.override(values, text)
        return type(self)(**values)

    def values(self) -> dict[str, Any]:
        """All fields as plain data; what is unset or an empty list is left out."""
        values = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {name: value for name, value in values.items() if value != []}

    def to_toml(self) -> str:
        """The resolved recipe as a TOML file: every default written out."""
        return toml.write(self.values())

    def digest(self) -> str:
        """SHA-256 (hex) of what decides the result: all fields but `FREE`."""
        values = self.values()
        for section, _, name in (path.rpartition(".") for path in FREE):
            (values[section] if section else values).pop(name, None)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def plans(self) -> tuple[Plan, ...]:
        """The stages, each with what it inherits; one where the recipe has none."""
        return tuple(self._plan(stage, index) for index, stage in enumerate(self.stage or (Stage(),), 1))

    def _plan(self, stage: Stage, number: int) -> Plan:
        loss = stage.loss or self.loss
        return Plan(
            name=stage.name or str(number),
            epochs=stage.epochs or self.run.epochs,
            batch_size=stage.batch_size or self.run.batch_size,
            eps=loss.eps if loss.eps is not None else Constant(kind="constant", value=self.region.eps),
            loss=loss,
            regularizers=self.regularizer if stage.regularizer is None else stage.regularizer,
            optimizer=stage.optimizer or self.optimizer,
            sampling=stage.sampling or self.sampling,
        )

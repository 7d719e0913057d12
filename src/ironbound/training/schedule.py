"""Numbers that change while training goes on. Time is counted in epochs of a stage, fractions included.

A schedule is a value: called with a time it gives a number. In a recipe it is a number, or a table with its `kind`:

    eps = { kind = "smooth", from = 0, to = 0.1, start = 1, end = 10 }
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

Number = Annotated[float, Field(allow_inf_nan=False)]


def ramp(time: float, start: float, end: float) -> float:
    """The share of the way: 0 up to `start`, linear, 1 from `end` on; without length, a jump at `start`."""
    if time >= end:
        return 1.0
    return max(0.0, (time - start) / (end - start)) if end > start else 0.0


class _Schedule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    def settled(self, time: float) -> bool:
        """Whether the value no longer changes from this time on."""
        raise NotImplementedError

    def __call__(self, time: float) -> float:
        raise NotImplementedError


class Constant(_Schedule):
    """The same number all the time."""

    kind: Literal["constant"] = Field(default="constant", description="the same number all the time")
    value: Number = Field(description="the number")

    def __call__(self, time: float) -> float:
        """The number."""
        return self.value

    def settled(self, time: float) -> bool:
        """Always."""
        return True


class _Ramp(_Schedule):
    """From one number to another between two times, constant before and after."""

    begin: Number = Field(alias="from", description="value up to `start`")
    to: Number = Field(description="value from `end` on")
    start: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="time in epochs when it begins to change")
    end: float = Field(ge=0, allow_inf_nan=False, description="time in epochs when it has arrived")

    @model_validator(mode="after")
    def _check(self) -> _Ramp:
        if self.end < self.start:
            raise ValueError(f"end ({self.end:g}) must not lie before start ({self.start:g})")
        return self

    def share(self, time: float) -> float:
        """How much of the way is done, in [0, 1]."""
        return ramp(time, self.start, self.end)

    def __call__(self, time: float) -> float:
        share = self.share(time)
        return self.to if share >= 1 else self.begin + share * (self.to - self.begin)

    def settled(self, time: float) -> bool:
        """From `end` on."""
        return time >= self.end or self.begin == self.to


class Linear(_Ramp):
    """A straight line between two values."""

    kind: Literal["linear"] = Field(default="linear", description="a straight line from `from` to `to`")


class Cosine(_Ramp):
    """Half a cosine wave between two values: flat at both ends.

    Source: Loshchilov and Hutter, "SGDR" (2017), equation (5), without restarts.
    """

    kind: Literal["cosine"] = Field(
        default="cosine", description="half a cosine wave from `from` to `to`, flat at both ends"
    )

    def share(self, time: float) -> float:
        """(1 - cos(pi t)) / 2."""
        return (1 - math.cos(math.pi * ramp(time, self.start, self.end))) / 2


class Smooth(_Ramp):
    """Begins like a power of time and goes on as a straight line with the same slope.

    Source: the schedule of Zhang et al., "Towards stable and efficient training of verifiably robust neural networks"
        (2020), and Xu et al., "Automatic perturbation analysis" (2020), after Gowal et al. (2018): power 4, line from
        a quarter of the way on.
    """

    kind: Literal["smooth"] = Field(
        default="smooth", description="starts like a power of time, goes on as a line, no kink"
    )
    mid: float = Field(default=0.25, gt=0, le=1, description="share of the time after which the line begins")
    power: float = Field(default=4.0, ge=1, allow_inf_nan=False, description="power of time in the first part")

    def share(self, time: float) -> float:
        """With a line of slope s through (1, 1): s = p v / m at the joint, where v = 1 - s (1 - m)."""
        way = ramp(time, self.start, self.end)
        slope = self.power / (self.mid + self.power * (1 - self.mid))
        if way >= self.mid:
            return 1 - slope * (1 - way)
        return (1 - slope * (1 - self.mid)) * (way / self.mid) ** self.power


class Stepped(_Schedule):
    """Jumps to another value at given times."""

    kind: Literal["stepped"] = Field(default="stepped", description="jumps at given times")
    values: tuple[Number, ...] = Field(min_length=1, description="the values, one more than there are times")
    at: tuple[Number, ...] = Field(
        default=(), description="rising times in epochs; from the i-th on the value i + 1 holds"
    )

    @model_validator(mode="after")
    def _check(self) -> Stepped:
        if len(self.values) != len(self.at) + 1:
            raise ValueError(f"{len(self.at)} times need {len(self.at) + 1} values, got {len(self.values)}")
        if list(self.at) != sorted(set(self.at)):
            raise ValueError("the times in `at` must rise")
        return self

    def __call__(self, time: float) -> float:
        """The value after the last jump."""
        return self.values[sum(time >= at for at in self.at)]

    def settled(self, time: float) -> bool:
        """From the last jump on."""
        return not self.at or time >= self.at[-1]


KINDS: dict[str, type[_Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "smooth": Smooth,
    "stepped": Stepped,
    "cosine": Cosine,
}


def _from_number(value: Any) -> Any:
    """A bare number is a constant schedule."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"kind": "constant", "value": value}
    return value


def _kind(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) else None


Schedule = Annotated[
    Annotated[Constant, Tag("constant")]
    | Annotated[Linear, Tag("linear")]
    | Annotated[Smooth, Tag("smooth")]
    | Annotated[Stepped, Tag("stepped")]
    | Annotated[Cosine, Tag("cosine")],
    Discriminator(
        _kind,
        custom_error_type="schedule",
        custom_error_message="must be a number, or a table with kind = constant, linear, smooth, stepped or cosine",
    ),
    BeforeValidator(_from_number),
]
"""A number, or a table that names a kind: the type of a recipe's field that may change over time."""


def extremes(schedule: _Schedule) -> tuple[float, float]:
    """Smallest and largest value that a schedule takes.

    Args:
        schedule: any schedule.

    Returns:
        The two numbers; every value between is not necessarily taken.
    """
    if isinstance(schedule, Constant):
        values: tuple[float, ...] = (schedule.value,)
    elif isinstance(schedule, Stepped):
        values = schedule.values
    else:
        assert isinstance(schedule, _Ramp)
        values = (schedule.begin, schedule.to)
    return min(values), max(values)

"""Training, just enough for networks worth certifying: a standard, an adversarial and an interval loss, with a ramp."""

from ironbound.training.loop import train
from ironbound.training.recipes import Recipe, digits_demo
from ironbound.training.record import Epoch, TrainingRecord

__all__ = ["Epoch", "Recipe", "TrainingRecord", "digits_demo", "train"]

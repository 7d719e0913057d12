"""Certified training: losses, schedules, recipes, the loop.

```python
record = ironbound.training.train(model, inputs, labels, loss="interval", eps=0.1, epochs=60, ramp=(2, 30))
record = ironbound.training.train(model, inputs, labels, Recipe.read("recipe.toml"), folder="run")
```
"""

from ironbound.training.artefact import Artefact
from ironbound.training.loop import train
from ironbound.training.recipe import Recipe
from ironbound.training.record import Epoch, Evaluation, Step, TrainingRecord
from ironbound.training.shorthand import digits_demo, simple

__all__ = ["Artefact", "Epoch", "Evaluation", "Recipe", "Step", "TrainingRecord", "digits_demo", "simple", "train"]

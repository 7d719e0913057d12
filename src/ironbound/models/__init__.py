"""The architectures of the papers by name, and ways to open a user's own network.

```python
model = ironbound.models.load_weights(ironbound.models.build("small"), "weights.pth")
model = ironbound.models.normalized(model, mean=0.1307, std=0.3081)  # ε stays in pixels
```
"""

from ironbound.models.architectures import build, names
from ironbound.models.normalize import Normalize, normalized
from ironbound.models.raghunathan import load_raghunathan
from ironbound.models.source import open_model
from ironbound.models.weights import load_weights

__all__ = ["Normalize", "build", "load_raghunathan", "load_weights", "names", "normalized", "open_model"]

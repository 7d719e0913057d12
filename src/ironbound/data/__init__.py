"""Data sets in their official file formats, in the data's own units: normalisation is a layer of the model.

```python
test = ironbound.data.load("mnist", split="test", root="folder/with/idx/files")
mine = ironbound.data.load("my_data.npz")
other = ironbound.data.from_torch(any_torch_dataset, name="mine", split="test")
```

One file per format (`idx`, `cifar`, `svhn`, `har`, `digits`, `npz`); `catalogue` names every official file and its
hash; `files` finds, downloads and verifies them.
"""

from ironbound.data.dataset import Dataset, DataWarning
from ironbound.data.loading import load, names
from ironbound.data.torch_dataset import from_torch

__all__ = ["DataWarning", "Dataset", "from_torch", "load", "names"]

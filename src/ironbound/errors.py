"""Every error that Ironbound raises on purpose.

IronboundError
├── InputError (ValueError)      an argument that does not fit: ε, shapes, dtypes, labels, NaN
│   └── LabelError               labels outside the classes, or not integers
├── CaptureError                 the network cannot be turned into a graph
│   ├── UnsupportedOperatorError an operator, or an attribute of one, that no rule reads
│   ├── TrainingModeError        the network, or a layer of it, is in training mode
│   └── BatchMixingError         an output depends on other examples of the batch
├── DataError                    a data file is missing, empty, truncated or malformed
│   ├── HashMismatchError        the content is not what the official hash says
│   └── UnsafeFileError          a pickle that would run code
├── CertificateError             certificates that cannot be read, or belong to something else
├── WeightsError                 weights that cannot be read or do not fit the architecture
├── StoreError                   results cannot be written or read
│   ├── StoreBusyError           another process writes to the same store
│   └── StoreMismatchError       the store holds the results of another query
├── MemoryLimitError             one example does not fit into the memory budget
├── TrainingError                training cannot go on
└── SoundnessError               a proof and a counterexample contradict each other: a defect of Ironbound
"""


class IronboundError(Exception):
    """Base of every error that Ironbound raises on purpose; its message says what to do."""


class InputError(IronboundError, ValueError):
    """An argument does not fit: ε, shapes, dtypes, labels, or a value that is not finite."""


class LabelError(InputError):
    """Labels are not integers, or lie outside the classes of the network."""


class CaptureError(IronboundError):
    """A network cannot be turned into a graph."""


class UnsupportedOperatorError(CaptureError):
    """An operator, or an attribute of one, that no rule reads."""


class TrainingModeError(CaptureError):
    """The network, or a layer of it, is in training mode."""


class BatchMixingError(CaptureError):
    """An output of the network depends on other examples of the batch."""


class DataError(IronboundError):
    """A data file is missing, empty, truncated or malformed."""


class HashMismatchError(DataError):
    """The content of a file is not what its official hash says."""


class UnsafeFileError(DataError):
    """A pickled file asks for code to be run."""


class CertificateError(IronboundError):
    """Certificates, or a file beside them, cannot be read, or belong to something else."""


class WeightsError(IronboundError):
    """Weights cannot be read, or do not fit the architecture."""


class StoreError(IronboundError):
    """Results cannot be written or read."""


class StoreBusyError(StoreError):
    """Another process writes to the same store."""


class StoreMismatchError(StoreError):
    """A store holds the results of another query."""


class MemoryLimitError(IronboundError):
    """One example alone does not fit into the memory budget."""


class SoundnessError(IronboundError):
    """A bound and a run of the network contradict each other: a rule of Ironbound is wrong, nothing is certified."""


class TrainingError(IronboundError):
    """Training cannot go on: the loss is no longer a number."""

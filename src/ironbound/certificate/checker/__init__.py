"""The certificate checker: numpy alone, nothing of the rest of Ironbound; this folder runs wherever it is copied.

What is proved, in which model of arithmetic, and why every rounding error is paid for: docs/certificates.md. In short:
only the network and the inputs are trusted, all bounds are recomputed by induction over the nodes. Where a node's
values are at most M in magnitude, a functional with coefficients c of them pays e(n) |c| M for what rounding did to c
and will do to its next product, and in mode "float32" also |c| times the noise of the network's own run.
"""

from .checking import Checker
from .claims import Certificate, File
from .files import arrays_of, digest
from .layers import Arithmetic, CertificateError
from .parallel import check_file

__all__ = ["Arithmetic", "Certificate", "CertificateError", "Checker", "File", "arrays_of", "check_file", "digest"]

"""ONNX files: read into a PyTorch module of named nodes, which the same capture turns into a graph; and written.

`reading` opens the file, `planning` folds constants and turns nodes into steps by one rule per operator (`layers`,
`elementwise`, `shapes`, `pooling`), `network` is the module, `writing` goes the other way.
"""

from ironbound.capture.onnx.network import OnnxNetwork, load
from ironbound.capture.onnx.writing import save_onnx

__all__ = ["OnnxNetwork", "load", "save_onnx"]

"""Where in the user's code a traced operation or an exception comes from, in words for error messages."""

from __future__ import annotations

import linecache
import re
import traceback
from pathlib import Path

import torch
from torch import fx

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*(?:\n(?! *File ") *(?P<code>[^\n]+))?')
_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")


def node_source(node: fx.Node) -> str:
    """The user's line that made a traced node, and the layer if it is one of torch's.

    Args:
        node: a node of an exported program.

    Returns:
        Such as "net.py:12: x = torch.sort(x)" or "layer '3' (Softmax)"; empty when the trace knows neither.
    """
    line = ""
    for frame in _FRAME.finditer(node.meta.get("stack_trace") or ""):
        if not frame["file"].startswith(_NOT_THE_USERS):
            code = frame["code"] or linecache.getline(frame["file"], int(frame["line"]))
            line = f"{Path(frame['file']).name}:{frame['line']}: {code.strip()}"
    path, kind = innermost_layer(node)
    layer = f"layer {path!r} ({kind.rpartition('.')[2]})" if path and kind.startswith("torch.nn.") else ""
    return ", ".join(part for part in (line, layer) if part)


def innermost_layer(node: fx.Node) -> tuple[str, str]:
    """Path and qualified class name of the innermost module that made a traced node ("" where unknown)."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "", ""
    path, kind = list(stack.values())[-1]
    if not isinstance(kind, str):
        kind = f"{kind.__module__}.{kind.__qualname__}"
    return path.partition("@")[0], kind


def error_source(error: BaseException) -> str:
    """The innermost line of the user's code that an exception passed through; empty when there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_NOT_THE_USERS):
            return f"{Path(frame.filename).name}:{frame.lineno}: {(frame.line or '').strip()}"
    return ""

"""A network traced by running it has the graph that `torch.export` gives, and is refused for the same reasons."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ironbound.capture import capture, export
from ironbound.capture.call import Call, Result
from ironbound.capture.check import probes
from ironbound.capture.onnx import OnnxNetwork, load
from ironbound.capture.program import exported
from ironbound.capture.record import recorded, straight_line
from ironbound.capture.walk import RULES
from ironbound.errors import BatchMixingError, CaptureError, IronboundError, TrainingModeError, UnsupportedOperatorError
from ironbound.graph import Graph
from ironbound.ops.operator import Operator
from ironbound.ops.piecewise import ReLU
from onnx_cases import CASES, Case, build, node, normal, one, written


@straight_line
class Straight(nn.Module):
    """A function and a parameter."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        """Runs the function."""
        return self.function(x, self.weight)


def gemm(folder: Path) -> OnnxNetwork:
    nodes = [node("Gemm", "x w b", "a"), node("LeakyRelu", "a", "r", alpha=0.3), node("Gemm", "r v", "y")]
    return load(written(folder, build(nodes, (1, 4), {"w": normal(4, 5), "b": normal(5), "v": normal(5, 3)})))


def both(network: nn.Module, points: Tensor) -> tuple[Graph, Graph]:
    """The graph of a run, and that of an exported program."""
    trace = recorded(network, points)
    assert trace is not None
    with torch.inference_mode(False), export._silence():
        return export._translated(trace, points)[0], export._translated(exported(network, points), points)[0]


def facts(operator: Operator) -> dict[str, Any]:
    """What an operator holds: tensors by where they lie and what they contain, no functions."""
    found: dict[str, Any] = {"kind": type(operator)}
    for name, value in vars(operator).items():
        if isinstance(value, Tensor):
            found[name] = (value.shape, value.stride(), value.dtype, value.requires_grad, value.tolist())
        elif not callable(value):
            found[name] = value
    return found


def check_same(network: nn.Module, points: Tensor) -> None:
    run, reference = both(network, points)
    assert len(run.nodes) == len(reference.nodes)
    owned = {tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    for one_node, other in zip(run.nodes, reference.nodes, strict=True):
        for field in ("name", "inputs", "shape", "source"):
            assert getattr(one_node, field) == getattr(other, field)
        assert facts(one_node.operator) == facts(other.operator)
        for mine, theirs in zip(one_node.operator.tensors(), other.operator.tensors(), strict=True):
            live = mine.data_ptr() in owned
            assert live == (theirs.data_ptr() in owned)
            assert not live or mine.data_ptr() == theirs.data_ptr()
    x = torch.randn(4, *points.shape[1:], dtype=points.dtype)
    with torch.no_grad():
        assert torch.equal(run(x), reference(x))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_run_and_an_exported_program_give_one_graph(case: Case, tmp_path: Path) -> None:
    network = load(written(tmp_path, case.model()))
    check_same(network, probes(torch.zeros(1, *case.shape)))


@pytest.mark.shared
def test_the_competitions_networks_have_one_graph_either_way(shared: Path) -> None:
    paths = sorted((shared / "vnncomp").glob("*/onnx/*.onnx*"))
    if not paths:
        pytest.skip("the shared folder has no competition networks")
    for path in (path for path in paths if "ACASXU" not in path.name or "_1_1_" in path.name):
        network = load(path)
        check_same(network, probes(torch.rand(1, *network.input_shape)))


def test_double_networks_and_calls_from_inference_mode(tmp_path: Path) -> None:
    network = gemm(tmp_path).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    check_same(network, probes(x))
    with torch.inference_mode():
        graph = capture(network, x)
    graph(x).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_an_onnx_query_imports_no_compiler_and_no_runtime(tmp_path: Path) -> None:
    heavy = ["torch._dynamo", "torch.export._trace", "sympy", "onnxruntime", "onnx.reference", "scipy", "typer", "rich"]
    cases = [case for case in CASES if case.name in ("gemm", "conv same upper", "batch normalization", "concat values")]
    paths = [str(written(tmp_path, case.model(), f"{number}.onnx")) for number, case in enumerate(cases)]
    program = f"""
import sys, torch
before = set(sys.modules)  # a torch that has them anyway is not to blame
import ironbound as ib
from ironbound.capture import capture
for path in {paths!r}:
    network = ib.load(path)
    graph = capture(network, torch.zeros(1, *network.input_shape))
ib.bounds(ib.load({paths[0]!r}), ib.LinfBall(torch.zeros(1, 4), 0.1))
ib.spec.parse_vnnlib("(declare-const X_0 Real)(declare-const Y_0 Real)"
    "(assert (>= X_0 0))(assert (<= X_0 1))(assert (<= Y_0 0))")
print(*[name for name in {heavy!r} if name in sys.modules and name not in before])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    assert done.stdout.split() == []


# --- what is not traced by a run -----------------------------------------------------------------------------------


def relabelled(network: OnnxNetwork) -> nn.Module:
    class Other(OnnxNetwork):
        pass

    network.__class__ = Other
    return network


def replaced(network: OnnxNetwork) -> nn.Module:
    network.steps["LeakyRelu_r"] = nn.Identity().eval()
    return network


def patched(network: OnnxNetwork) -> nn.Module:
    network.forward = network.forward  # type: ignore[method-assign]
    return network


def hooked(network: OnnxNetwork) -> nn.Module:
    network.steps["Gemm_a"].register_forward_hook(lambda module, given, value: value)
    return network


def prepared(network: OnnxNetwork) -> nn.Module:
    network.register_forward_pre_hook(lambda module, given: given)
    return network


@pytest.mark.parametrize("change", [relabelled, replaced, patched, hooked, prepared])
def test_changed_networks_are_exported(change: Callable[[OnnxNetwork], nn.Module], tmp_path: Path) -> None:
    network, points = gemm(tmp_path), torch.randn(3, 4)
    assert recorded(network, points) is not None
    assert recorded(change(network), points) is None


def test_hooks_for_all_modules_are_respected(tmp_path: Path) -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, value: None)
    try:
        assert recorded(gemm(tmp_path), torch.randn(3, 4)) is None
    finally:
        handle.remove()


def test_ordinary_modules_are_exported() -> None:
    assert recorded(nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), torch.randn(3, 4)) is None


def parity(x: Tensor, weight: Tensor) -> Tensor:
    return x + weight if len(x) % 2 else x - weight


def by_parts(x: Tensor, weight: Tensor) -> Tensor:
    return torch.stack([part * weight for part in x])


def through_numpy(x: Tensor, weight: Tensor) -> Tensor:
    return x + torch.from_numpy(x.numpy() * 2)


def in_place(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).relu_()


def first_value(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight[0].item()


def flattened(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).flatten().reshape(-1, 4)


def doubled_size(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight * (2 * len(x))


OTHER_TENSOR = torch.ones(4)


@pytest.mark.parametrize(
    "function",
    [parity, by_parts, through_numpy, in_place, first_value, flattened, doubled_size, lambda x, w: x + OTHER_TENSOR],
    ids=lambda function: function.__name__,
)
def test_what_two_runs_cannot_tell_is_left_to_export(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    network = Straight(function).eval()
    before = {id(module): dict(vars(module)) for module in network.modules()}
    assert recorded(network, torch.randn(3, 4)) is None
    assert {id(module): dict(vars(module)) for module in network.modules()} == before
    assert _get_current_dispatch_mode() is None


@pytest.mark.parametrize("which", ["weight", "other"])
def test_two_runs_must_read_the_same_tensor(which: str) -> None:
    class Alternating(Straight):
        def __init__(self) -> None:
            super().__init__(lambda x, w: x)
            self.other = nn.Parameter(torch.randn(4))
            self.runs = 0

        def forward(self, x: Tensor) -> Tensor:
            self.runs += 1
            return x * (self.weight if which == "weight" or self.runs % 2 else self.other)

    straight_line(Alternating)
    assert (recorded(Alternating().eval(), torch.randn(3, 4)) is None) == (which == "other")


# --- refusals ------------------------------------------------------------------------------------------------------


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "mean over the batch": lambda x: x - x.mean(0),
    "sum over the batch": lambda x: x + x.sum(0, keepdim=True),
    "reversed batch": lambda x: x + x.flip(0),
    "cumulative sum": lambda x: x.cumsum(0),
    "rolled": lambda x: x.roll(1, 0),
    "first example": lambda x: x - x[0],
    "first example kept": lambda x: x - x[:1],
    "batch size as a factor": lambda x: x * len(x),
    "regrouped": lambda x: x.reshape(-1).reshape(x.shape[1], -1).t(),
    "normalised": lambda x: nn.functional.batch_norm(x, None, None, training=True),
    "softmax over the batch": lambda x: x * x.softmax(0),
    "random": lambda x: x + torch.rand(4),
    "product": lambda x: x @ x.t() @ x,
}


@pytest.mark.parametrize("name", MIXING)
def test_an_onnx_network_that_mixes_examples_is_refused(name: str, tmp_path: Path) -> None:
    network = load(written(tmp_path, build(one("Relu"), (1, 4), {})))
    object.__setattr__(network.steps["relu"], "_function", MIXING[name])
    with pytest.raises(IronboundError):
        capture(network, torch.randn(1, 4))
    if name in ("mean over the batch", "reversed batch", "cumulative sum", "rolled"):  # seen in the run itself
        trace = recorded(network, torch.randn(3, 4))
        assert trace is not None
        with pytest.raises(BatchMixingError):
            export._translated(trace, torch.randn(3, 4))


@pytest.mark.parametrize("width", [2, 3, 4])  # 2 and 3 are the batch sizes of the runs
@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: x * len(x),
        lambda x, w: x.sum(0),
        lambda x, w: x.t(),
        lambda x, w: x.reshape(x.shape[1], -1),
        lambda x, w: x.new_ones(len(x), 1) * x,
    ],
    ids=["factor", "sum", "transposed", "regrouped", "ones"],
)
def test_the_batch_is_told_from_a_width_of_the_same_size(
    function: Callable[[Tensor, Tensor], Tensor], width: int
) -> None:
    points = torch.randn(3, width)
    trace = recorded(Straight(function).eval(), points)
    assert trace is not None
    with pytest.raises((UnsupportedOperatorError, BatchMixingError)):
        export._translated(trace, points)


def test_training_mode_is_refused(tmp_path: Path) -> None:
    network = gemm(tmp_path).train()
    with pytest.raises(TrainingModeError):
        capture(network, torch.randn(1, 4))


def test_arguments_that_a_rule_does_not_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(call: Call) -> Result:
        return call.emit(ReLU(), call.value("self"))

    monkeypatch.setitem(RULES, "aten.leaky_relu.default", careless)
    with pytest.raises(UnsupportedOperatorError, match=r"its argument negative_slope=0.3\d* is not supported"):
        capture(gemm(tmp_path), torch.randn(1, 4))


def test_a_rule_that_computes_something_else_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(call: Call) -> Result:
        call.skip("negative_slope")
        return call.emit(ReLU(), call.value("self"))

    monkeypatch.setitem(RULES, "aten.leaky_relu.default", wrong)
    with pytest.raises(CaptureError, match="computes other values than the network"):
        capture(gemm(tmp_path), torch.randn(1, 4))


def test_a_network_is_run_and_captured_once(tmp_path: Path) -> None:
    network, x = gemm(tmp_path), torch.randn(2, 4)
    graph = capture(network, x)
    assert capture(network, x) is graph
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    with torch.no_grad():
        next(network.parameters()).mul_(2)
    assert capture(network, x) is graph
    torch.testing.assert_close(graph(x), network(x))

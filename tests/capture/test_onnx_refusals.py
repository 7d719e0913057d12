"""What no rule reads, and files that are broken, are refused in one sentence that names the node or the file."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from ironbound.capture import capture
from ironbound.capture.onnx import load
from ironbound.errors import CaptureError, IronboundError, UnsupportedOperatorError, WeightsError
from onnx_cases import build, node, normal, one, whole, written

REFUSED: list[tuple[str, list[onnx.NodeProto], tuple[int, ...], dict[str, np.ndarray], int, str]] = [
    ("softmax", one("Softmax", axis=1), (4,), {}, 13, "logits"),
    ("unknown", one("Erf"), (4,), {}, 13, "no rule reads it"),
    ("square", one("Mul", "x", "x"), (4,), {}, 13, "both factors"),
    ("matmul values", one("MatMul", "x", "x"), (4, 4), {}, 13, "both factors"),
    ("dynamic divisor", one("Div", "c", "x"), (4,), {"c": normal(4)}, 13, "divisor"),
    ("division by zero", one("Div", "x", "c"), (4,), {"c": np.zeros(4, np.float32)}, 13, "divides by zero"),
    ("transA", one("Gemm", "x", "w", transA=1), (4,), {"w": normal(1, 4)}, 13, "transA"),
    ("gemm bias", one("Gemm", "x", "w", "b"), (4,), {"w": normal(4, 3), "b": normal(2, 3)}, 13, "one entry per output"),
    ("dynamic weight", one("Conv", "x", "x"), (1, 3, 3), {}, 13, "only its first input"),
    ("conv pads", one("Conv", "x", "w", pads=[1, 1]), (1, 3, 3), {"w": normal(1, 1, 2, 2)}, 13, "pads"),
    ("auto pad", one("Conv", "x", "w", auto_pad="HALF"), (1, 3, 3), {"w": normal(1, 1, 2, 2)}, 13, "auto_pad"),
    (
        "kernel shape",
        one("Conv", "x", "w", kernel_shape=[3, 3]),
        (1, 3, 3),
        {"w": normal(1, 1, 2, 2)},
        13,
        "kernel_shape",
    ),
    ("foreign attribute", one("Relu", colour="red"), (4,), {}, 13, "attribute colour = b'red'"),
    ("drops batch", one("Squeeze", "x", "s"), (4,), {"s": whole(0)}, 13, "batch axis"),
    ("reshape drops batch", one("Reshape", "x", "s"), (4, 3), {"s": whole(4, 3)}, 13, "batch axis"),
    ("reshape size", one("Reshape", "x", "s"), (4, 3), {"s": whole(1, 5)}, 13, "does not fit"),
    ("transposes batch", one("Transpose", perm=[1, 0]), (4,), {}, 13, "batch axis"),
    ("joins batch", one("Concat", "x", "x", axis=0), (4,), {}, 13, "batch axis"),
    ("copies batch", one("Gather", "x", "i", axis=0), (4,), {"i": whole(0, 0)}, 13, "copies the batch axis"),
    ("gather range", one("Gather", "x", "i", axis=1), (4,), {"i": whole(4)}, 13, "leave the axis"),
    ("pads batch", one("Pad", "x", "p"), (4,), {"p": whole(1, 0, 0, 0)}, 13, "pads the batch"),
    (
        "slice to nothing",
        one("Slice", "x", "b", "e"),
        (4,),
        {"b": whole(0, 3), "e": whole(1, 3)},
        13,
        "nothing is left",
    ),
    ("reduce over batch", one("ReduceMean", keepdims=0), (4,), {}, 13, "drops the batch axis"),
    (
        "training",
        one("BatchNormalization", "x", *"sbmv", training_mode=1),
        (3,),
        dict.fromkeys("sbmv", normal(3)),
        14,
        "training mode",
    ),
    ("dropout", [node("Dropout", "x - t", "y")], (4,), {"t": np.array(True)}, 13, "training mode"),
    ("mask", [node("Dropout", "x", "a m"), node("Cast", "m", "y", to=1)], (4,), {}, 13, "computes"),
    ("indices", [node("MaxPool", "x", "y i", kernel_shape=[2, 2])], (1, 4, 4), {}, 13, "indices"),
    ("window", one("MaxPool", kernel_shape=[2, 2], pads=[2, 0, 0, 0]), (1, 4, 4), {}, 13, "padding alone"),
    ("clip", one("Clip", min=1.0, max=1.0), (4,), {}, 9, "below its upper"),
    ("clip nan", one("Clip", "x", "c"), (4,), {"c": np.float32("nan")}, 13, "must be finite"),
    ("slope", one("LeakyRelu", alpha=float("inf")), (4,), {}, 13, "must be finite"),
    ("pad", one("Pad", "x", "p", "v"), (4,), {"p": whole(0, 0, 0, 1), "v": np.float32("inf")}, 13, "must be finite"),
    ("cast", [node("Cast", "x", "y", to=11)], (4,), {}, 13, "changes the type"),
    ("random", [node("RandomNormalLike", "x", "y")], (4,), {}, 13, "RandomNormalLike"),
    (
        "random constant",
        [node("RandomNormal", "", "r", shape=[4]), node("Add", "x r", "y")],
        (4,),
        {},
        13,
        "fixed function",
    ),
    ("mixed types", one("Add", "x", "c"), (4,), {"c": np.ones(4)}, 13, "type"),
    ("shapes do not fit", one("Add", "x", "c"), (4,), {"c": normal(3)}, 13, "does not fit its inputs"),
    ("constant for each example", one("Add", "x", "c"), (4,), {"c": normal(2, 4)}, 13, "batch axis"),
    ("constant output", [node("Neg", "c", "y")], (4,), {"c": normal(1, 4)}, 13, "does not depend"),
]


@pytest.mark.parametrize(
    ("nodes", "shape", "constants", "opset", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_a_node_is_refused_by_name(
    nodes: list[onnx.NodeProto],
    shape: tuple[int, ...],
    constants: dict[str, np.ndarray],
    opset: int,
    reason: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(IronboundError, match=reason) as caught:
        load(written(tmp_path, build(nodes, (1, *shape), constants, opset)))
    text = str(caught.value)
    assert text.count("\n") == 0
    if reason not in ("computes", "does not depend"):
        assert isinstance(caught.value, CaptureError)
        assert any(f"'{entry.op_type}' of the node '{entry.name}'" in text for entry in nodes)


def test_a_product_that_mixes_the_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="'MatMul' of the node 'matmul' does not"):
        load(written(tmp_path, build(one("MatMul", "w", "x"), (1, 4), {"w": normal(1, 1)})))


def relu(**options: Any) -> onnx.ModelProto:
    return build(one("Relu"), (1, 4), {}, **options)


@pytest.mark.parametrize("opset", [6, 99])
def test_an_unknown_operator_set_is_refused(opset: int, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperatorError, match=f"operator set {opset};"):
        load(written(tmp_path, relu(opset=opset)))


def test_foreign_operators_are_refused(tmp_path: Path) -> None:
    model = relu()
    model.graph.node[0].domain = "com.example"
    with pytest.raises(UnsupportedOperatorError, match=r"'Relu' of the node 'relu' .* domain 'com.example'"):
        load(written(tmp_path, model))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((2, 4), "first axis must be the batch"),
        ((4,), "first axis must be the batch"),
        ((1, "width"), r"shape \[1, width\], open beyond"),
        (("n", 4, "m"), "give input_shape"),
    ],
)
def test_open_shapes_and_fixed_batches_are_refused(shape: tuple[Any, ...], reason: str, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=reason):
        load(written(tmp_path, build(one("Relu"), shape, {})))


def test_an_open_shape_can_be_given(tmp_path: Path) -> None:
    path = written(tmp_path, build(one("Relu"), ("n", "m", 3), {}))
    assert load(path, input_shape=(5, 3)).output_shape == (5, 3)
    for wrong in ((5, 4), (3,)):
        with pytest.raises(CaptureError, match="does not fit"):
            load(path, input_shape=wrong)
    del (model := onnx.load(str(path))).graph.input[0].type.tensor_type.shape.dim[:]
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert load(written(tmp_path, model), input_shape=(5, 3)).input_shape == (5, 3)


def test_other_types_of_input_are_refused(tmp_path: Path) -> None:
    for kind in (TensorProto.UINT8, TensorProto.FLOAT16):
        with pytest.raises(CaptureError, match="not of type float or double"):
            load(written(tmp_path, relu(dtype=kind)))


def test_several_inputs_or_outputs_are_refused(tmp_path: Path) -> None:
    model = relu()
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, 4)))
    with pytest.raises(CaptureError, match=r"2 inputs \(x, z\)"):
        load(written(tmp_path, model))
    model = relu()
    model.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4)))
    with pytest.raises(CaptureError, match=r"2 outputs \(y, x\)"):
        load(written(tmp_path, model))


def gemm() -> onnx.ModelProto:
    return build(one("Gemm", "x", "w"), (1, 4), {"w": normal(4, 3)})


def test_broken_files_are_typed_errors(tmp_path: Path) -> None:
    content = gemm().SerializeToString()
    path = tmp_path / "net.onnx"
    with pytest.raises(WeightsError, match="cannot be read"):
        load(path)
    for broken in (b"", b"hello, world", content[: len(content) // 2], gzip.compress(content)[:-9], bytes(100)):
        path.write_bytes(broken)
        with pytest.raises(WeightsError, match=r"net\.onnx"):
            load(path)
    path.write_bytes(gzip.compress(content))
    assert load(path).output_shape == (3,)


def test_every_truncation_and_many_flipped_bytes_end_in_a_typed_error_or_a_network(tmp_path: Path) -> None:
    content = gemm().SerializeToString()
    path = tmp_path / "net.onnx"
    generator = np.random.default_rng(0)
    variants = [content[:size] for size in range(0, len(content), 3)]
    for _ in range(150):
        damaged = bytearray(content)
        damaged[generator.integers(len(content))] = generator.integers(256)
        variants.append(bytes(damaged))
    refused = 0
    for variant in variants:
        path.write_bytes(variant)
        try:
            load(path)
        except IronboundError:
            refused += 1
    assert refused > len(variants) // 3


def test_names_that_nothing_defines_and_second_definitions(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="reads 'z', which nothing before it computes"):
        load(written(tmp_path, build(one("Add", "x", "z"), (1, 4), {})))
    twice = [node("Relu", "x", "a"), node("Tanh", "x", "a"), node("Neg", "a", "y")]
    with pytest.raises(WeightsError, match="computes 'a' a second time"):
        load(written(tmp_path, build(twice, (1, 4), {})))
    with pytest.raises(WeightsError, match="computed by no node"):
        load(written(tmp_path, build([node("Relu", "x", "z")], (1, 4), {})))
    unread = [node("NoSuchThing", "x", "z"), node("Relu", "x", "y")]
    assert load(written(tmp_path, build(unread, (1, 4), {}))).output_shape == (4,)


def test_external_data(tmp_path: Path) -> None:
    model = gemm()
    external_data_helper.convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    path = tmp_path / "net.onnx"
    onnx.save(model, str(path))
    expected = normal(4, 3)
    network = load(path)
    (weight,) = network.parameters()
    np.testing.assert_array_equal(weight.detach().numpy(), expected)
    (tmp_path / "weights.bin").write_bytes(b"short")
    with pytest.raises(WeightsError, match="another file"):
        load(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(WeightsError, match="put it beside the network"):
        load(path)


def test_weights_that_do_not_fit_their_shape(tmp_path: Path) -> None:
    model = gemm()
    model.graph.initializer[0].dims[0] = 5
    with pytest.raises(WeightsError, match="the tensor 'w' cannot be read"):
        load(written(tmp_path, model))


def test_local_functions_are_put_in_place(tmp_path: Path) -> None:
    model = build(one("Twice"), (1, 4), {})
    model.graph.node[0].domain = "local"
    body = [node("Add", "a a", "b")]
    model.functions.append(helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 13)]))
    model.opset_import.append(helper.make_opsetid("local", 1))
    x = torch.randn(2, 4)
    assert torch.equal(load(written(tmp_path, model))(x), 2 * x)


def test_double_files_stay_double(tmp_path: Path) -> None:
    constants = {"w": normal(4, 3).astype(np.float64)}
    network = load(written(tmp_path, build(one("Gemm", "x", "w"), (1, 4), constants, dtype=TensorProto.DOUBLE)))
    (weight,) = network.parameters()
    assert weight.dtype == torch.float64
    assert capture(network, torch.zeros(1, 4, dtype=torch.float64)).output_shape == (3,)


def test_weights_are_parameters_under_the_nodes_names_and_shared_where_the_file_shares_them(tmp_path: Path) -> None:
    nodes = [node("Gemm", "x w b", "a"), node("Relu", "a", "r"), node("Gemm", "r w b", "y")]
    network = load(written(tmp_path, build(nodes, (1, 4), {"w": normal(4, 4), "b": normal(4), "unread": normal(2)})))
    assert sorted(network.state_dict()) == [f"steps.Gemm_{name}.{role}" for name in "ay" for role in ("bias", "weight")]
    assert len(list(network.parameters())) == 2
    graph = capture(network, torch.zeros(1, 4))
    x = torch.randn(3, 4)
    with torch.no_grad():
        next(network.parameters()).mul_(0.5)
    assert torch.equal(graph(x), network(x))
    graph(x).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_constant_nodes_value_in_every_spelling(tmp_path: Path) -> None:
    values: list[dict[str, Any]] = [
        {"value": numpy_helper.from_array(np.float32(2).reshape(()))},
        {"value_float": 2.0},
        {"value_floats": [2.0, 2.0, 2.0, 2.0]},
    ]
    x = torch.randn(2, 4)
    for value in values:
        nodes = [node("Constant", "", "c", **value), node("Mul", "x c", "y")]
        assert torch.equal(load(written(tmp_path, build(nodes, (1, 4), {})))(x), 2 * x)

"""One small ONNX file per operator and spelling, for tests that compare the importer with the reference runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def normal(*shape: int, seed: int = 7) -> np.ndarray:
    """Random float32 numbers, the same for the same shape and seed."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def whole(*values: int) -> np.ndarray:
    """Whole numbers as ONNX wants them."""
    return np.array(values, dtype=np.int64)


@dataclass
class Case:
    """A file made of nodes.

    Attributes:
        name: of the case.
        nodes: the nodes, from "x" to "y".
        shape: shape of an input example.
        constants: initializers by name.
        opset: version of the standard operator set.
    """

    name: str
    nodes: list[onnx.NodeProto]
    shape: tuple[int, ...]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    opset: int = 13

    def model(self, batch: int | str = 1, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
        """The file's content."""
        return build(self.nodes, (batch, *self.shape), self.constants, self.opset, dtype)


def build(
    nodes: list[onnx.NodeProto],
    shape: tuple[int | str, ...],
    constants: dict[str, np.ndarray],
    opset: int = 13,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model from "x" to "y"."""
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def written(folder: Path, model: onnx.ModelProto, name: str = "net.onnx") -> Path:
    """Writes a model to a file."""
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def one(kind: str, *inputs: str, name: str = "", **attributes: Any) -> list[onnx.NodeProto]:
    """A single node from `inputs` (by default x) to y."""
    return [helper.make_node(kind, list(inputs or ("x",)), ["y"], name=name or kind.lower(), **attributes)]


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node; names are separated by blanks, "-" is an input left out."""
    names = ["" if part == "-" else part for part in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), name=f"{kind}_{outputs.split()[0]}", **attributes)


def _elementwise() -> list[Case]:
    row, image = {"c": normal(4)}, {"c": normal(3, 1, 1)}
    cases = [
        Case("add", one("Add", "x", "c"), (4,), row),
        Case("add constant first", one("Add", "c", "x"), (4,), row),
        Case("add batch axis", one("Add", "x", "c"), (4,), {"c": normal(1, 4)}),
        Case("add raises the value", one("Add", "x", "c"), (4,), {"c": normal(1, 3, 4)}),
        Case("add image", one("Add", "x", "c"), (3, 4, 5), image),
        Case("add number", one("Add", "x", "c"), (4,), {"c": np.float32(0.5).reshape(())}),
        Case("add widens", one("Add", "x", "c"), (3, 1), {"c": normal(1, 1, 4)}),
        Case("add values", [node("Relu", "x", "a"), node("Add", "a x", "y")], (4,)),
        Case("add twice", one("Add", "x", "x"), (4,)),
        Case("add ranks", [node("Reshape", "x s", "a"), node("Add", "a x", "y")], (4,), {"s": whole(1, 4, 1)}),
        Case("sub", one("Sub", "x", "c"), (4,), row),
        Case("sub constant first", one("Sub", "c", "x"), (4,), row),
        Case("sub values", [node("Relu", "x", "a"), node("Sub", "a x", "y")], (4,)),
        Case("mul", one("Mul", "x", "c"), (3, 4, 5), image),
        Case("mul constant first", one("Mul", "c", "x"), (4,), row),
        Case("div", one("Div", "x", "c"), (4,), row),
        Case("sum", [node("Relu", "x", "a"), node("Tanh", "x", "b"), node("Sum", "a b x", "y")], (4,)),
        Case("mean", [node("Relu", "x", "a"), node("Mean", "a x c", "y")], (4,), {"c": normal(1, 4)}),
        Case("neg", one("Neg"), (4,)),
        Case("abs", one("Abs"), (4,)),
        Case("relu", one("Relu"), (3, 4, 5)),
        Case("leaky relu", one("LeakyRelu"), (4,)),
        Case("leaky relu slope", one("LeakyRelu", alpha=0.3), (4,)),
        Case("prelu", one("PRelu", "x", "c"), (4,), row),
        Case("prelu channels", one("PRelu", "x", "c"), (3, 4, 5), image),
        Case("prelu one slope", one("PRelu", "x", "c"), (4,), {"c": np.full(1, 0.2, np.float32)}),
        Case("sigmoid", one("Sigmoid"), (4,)),
        Case("tanh", one("Tanh"), (4,)),
        Case("hard sigmoid", one("HardSigmoid"), (4,)),
        Case("hard sigmoid line", one("HardSigmoid", alpha=0.7, beta=0.1), (4,)),
        Case("gelu", one("Gelu"), (4,), opset=20),
        Case("gelu tanh", one("Gelu", approximate="tanh"), (4,), opset=20),
        Case("clip inputs", one("Clip", "x", "a", "b"), (4,), {"a": np.float32(-0.5), "b": np.float32(0.25)}),
        Case("clip upper", [node("Clip", "x - b", "y")], (4,), {"b": np.float32(0.25)}),
        Case("clip lower", one("Clip", "x", "a"), (4,), {"a": np.float32(-0.5)}),
        Case("clip attributes", one("Clip", min=-0.5, max=0.25), (4,), opset=9),
        Case("clip largest", one("Clip", min=-0.5, max=3.4028234663852886e38), (4,), opset=9),
        Case("clip smallest", one("Clip", min=-3.4028234663852886e38, max=0.25), (4,), opset=9),
        Case("max number", one("Max", "x", "c"), (4,), {"c": np.float32(0.1)}),
        Case("max values", [node("Neg", "x", "a"), node("Max", "a x c", "y")], (4,), row),
        Case("min", [node("Tanh", "x", "a"), node("Min", "c a x", "y")], (4,), row),
    ]
    return cases


def _layers() -> list[Case]:
    weight = {"w": normal(4, 3), "b": normal(3)}
    turned = {"w": normal(3, 4), "b": normal(3)}
    return [
        Case("gemm", one("Gemm", "x", "w", "b"), (4,), weight),
        Case("gemm transB", one("Gemm", "x", "w", "b", transB=1), (4,), turned),
        Case("gemm alpha beta", one("Gemm", "x", "w", "b", transB=1, alpha=0.5, beta=-2.0), (4,), turned),
        Case("gemm beta 0", one("Gemm", "x", "w", "b", beta=0.0), (4,), weight),
        Case("gemm no bias", one("Gemm", "x", "w", alpha=2.0), (4,), weight),
        Case("gemm row bias", one("Gemm", "x", "w", "b"), (4,), {"w": normal(4, 3), "b": normal(1, 3)}),
        Case("gemm one bias", one("Gemm", "x", "w", "b"), (4,), {"w": normal(4, 3), "b": normal(1)}),
        Case("matmul", one("MatMul", "x", "w"), (4,), weight),
        Case("matmul last axis", one("MatMul", "x", "w"), (2, 4), weight),
        Case("matmul left", one("MatMul", "w", "x"), (3, 2), weight),
        Case("matmul vector", one("MatMul", "x", "w"), (2, 4), {"w": normal(4)}),
        Case("matmul stacked one", one("MatMul", "x", "w"), (2, 4), {"w": normal(1, 4, 3)}),
        Case(
            "batch normalization",
            one("BatchNormalization", "x", "s", "b", "m", "v", epsilon=0.01, momentum=0.8),
            (3, 2, 2),
            {"s": normal(3), "b": normal(3, seed=1), "m": normal(3, seed=2), "v": normal(3) ** 2 + np.float32(0.3)},
        ),
        Case(
            "batch normalization flat",
            one("BatchNormalization", "x", "s", "b", "m", "v"),
            (3,),
            {"s": normal(3), "b": normal(3, seed=1), "m": normal(3, seed=2), "v": normal(3) ** 2 + np.float32(0.3)},
            opset=9,
        ),
    ]


def _convolutions() -> list[Case]:
    weight = {"w": normal(4, 2, 3, 2), "b": normal(4)}
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "stride": {"strides": [2, 1]},
        "symmetric": {"pads": [1, 1, 1, 1]},
        "asymmetric": {"pads": [0, 1, 2, 0], "strides": [2, 2]},
        "dilated": {"dilations": [2, 1], "pads": [1, 0, 1, 0]},
        "same upper": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        "same lower": {"auto_pad": "SAME_LOWER", "strides": [2, 1]},
        "valid": {"auto_pad": "VALID", "kernel_shape": [3, 2]},
    }
    cases = [
        Case(f"conv {name}", one("Conv", "x", "w", "b", **more), (2, 6, 5), weight) for name, more in options.items()
    ]
    cases += [
        Case("conv no bias", one("Conv", "x", "w"), (2, 6, 5), {"w": weight["w"]}),
        Case("conv groups", one("Conv", "x", "w", group=2), (4, 5, 5), {"w": normal(6, 2, 2, 2)}),
        Case("conv 1d", one("Conv", "x", "w", auto_pad="SAME_UPPER"), (2, 7), {"w": normal(3, 2, 4)}),
        Case("conv 3d", one("Conv", "x", "w", pads=[1, 0, 0, 0, 0, 1]), (1, 4, 3, 3), {"w": normal(2, 1, 2, 2, 2)}),
    ]
    turned = {"w": normal(2, 3, 3, 2), "b": normal(3)}
    options = {
        "plain": {},
        "stride": {"strides": [2, 3], "pads": [1, 0, 1, 0]},
        "asymmetric": {"strides": [2, 2], "pads": [0, 1, 1, 0]},
        "output padding": {"strides": [2, 2], "output_padding": [1, 0]},
        "same upper": {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        "same lower": {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        "output shape": {"strides": [2, 2], "output_shape": [8, 6]},
        "dilated": {"dilations": [1, 2]},
    }
    cases += [
        Case(f"conv transpose {name}", one("ConvTranspose", "x", "w", "b", **more), (2, 4, 3), turned)
        for name, more in options.items()
    ]
    return cases


def _pooling() -> list[Case]:
    windows: dict[str, dict[str, Any]] = {
        "tiles": {"kernel_shape": [2, 2], "strides": [2, 2]},
        "overlap": {"kernel_shape": [3, 2]},
        "symmetric": {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]},
        "asymmetric": {"kernel_shape": [3, 2], "pads": [0, 1, 2, 0], "strides": [2, 2]},
        "ceil": {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1},
        "ceil padded": {"kernel_shape": [3, 3], "strides": [2, 3], "pads": [1, 0, 1, 1], "ceil_mode": 1},
        "same upper": {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        "same lower": {"kernel_shape": [2, 2], "strides": [1, 2], "auto_pad": "SAME_LOWER"},
    }
    cases = []
    for name, more in windows.items():
        cases.append(Case(f"max pool {name}", one("MaxPool", **more), (2, 6, 5)))
        cases.append(Case(f"average pool {name}", one("AveragePool", **more), (2, 6, 5)))
        counted = one("AveragePool", **more, count_include_pad=1)
        cases.append(Case(f"average pool {name} counted", counted, (2, 6, 5)))
    axes = {"axes": whole(2, -1)}
    return [
        *cases,
        Case("max pool dilated", one("MaxPool", kernel_shape=[2, 2], dilations=[2, 1]), (2, 6, 5)),
        Case("max pool 1d", one("MaxPool", kernel_shape=[3], strides=[2], pads=[0, 1]), (2, 7)),
        Case("max pool cut", one("MaxPool", kernel_shape=[2], strides=[3], pads=[0, 1], ceil_mode=1), (2, 3)),
        Case("average pool cut", one("AveragePool", kernel_shape=[2], strides=[3], pads=[0, 1], ceil_mode=1), (2, 3)),
        Case("average pool 1d", one("AveragePool", kernel_shape=[3], strides=[2], pads=[1, 1]), (2, 7)),
        Case("average pool 3d", one("AveragePool", kernel_shape=[2, 2, 1], pads=[0, 1, 0, 1, 0, 0]), (1, 3, 3, 2)),
        Case("global average", one("GlobalAveragePool"), (2, 3, 4)),
        Case("global max", one("GlobalMaxPool"), (2, 3, 4)),
        Case("reduce mean", one("ReduceMean", axes=[1, 3], keepdims=0), (2, 3, 4)),
        Case("reduce mean all", one("ReduceMean"), (2, 3)),
        Case("reduce sum", one("ReduceSum", "x", "axes"), (2, 3, 4), axes),
        Case("reduce sum nothing", one("ReduceSum", noop_with_empty_axes=1), (2, 3)),
        Case("reduce max", one("ReduceMax", "x", "axes", keepdims=0), (2, 3, 4), axes, opset=18),
        Case("reduce min", one("ReduceMin", axes=[1]), (2, 3)),
    ]


def _shapes() -> list[Case]:
    mixed = [
        node("Relu", "x", "a"),
        node("Concat", "c a d x e", "y", axis=2),
    ]
    return [
        Case("reshape", one("Reshape", "x", "s"), (2, 6), {"s": whole(1, 3, 4)}),
        Case("reshape rest", one("Reshape", "x", "s"), (2, 6), {"s": whole(0, -1)}),
        Case("reshape batch open", one("Reshape", "x", "s"), (2, 6), {"s": whole(-1, 12)}),
        Case("flatten", one("Flatten"), (2, 3, 4)),
        Case("flatten negative", one("Flatten", axis=-3), (2, 3, 4)),
        Case("squeeze", one("Squeeze", "x", "s"), (1, 4, 1), {"s": whole(1, -1)}),
        Case("squeeze attribute", one("Squeeze", axes=[2]), (4, 1), opset=11),
        Case("unsqueeze", one("Unsqueeze", "x", "s"), (4,), {"s": whole(1, 3)}),
        Case("unsqueeze attribute", one("Unsqueeze", axes=[-1]), (4,), opset=11),
        Case("transpose", one("Transpose", perm=[0, 3, 1, 2]), (2, 3, 4)),
        Case("transpose moves one", one("Transpose", perm=[1, 3, 0, 2]), (1, 3, 4)),
        Case("concat values", [node("Relu", "x", "a"), node("Concat", "a x", "y", axis=-1)], (2, 3)),
        Case("concat constants", mixed, (2, 3), {"c": normal(1, 2, 1), "d": normal(1, 2, 2), "e": normal(1, 2, 4)}),
        Case("concat constant first", one("Concat", "c", "x", axis=1), (3,), {"c": normal(1, 2)}),
        Case("split", [node("Split", "x s", "a b", axis=1), node("Sub", "a b", "y")], (4,), {"s": whole(2, 2)}),
        Case("split one", [node("Split", "x", "y b", axis=-1)], (4,)),
        Case("split attribute", [node("Split", "x", "a y", axis=1, split=[1, 3])], (4,), opset=11),
        Case("slice", one("Slice", "x", "b", "e"), (4, 5), {"b": whole(0, 1, -4), "e": whole(9, 3, -1)}),
        Case(
            "slice steps",
            one("Slice", "x", "b", "e", "a", "s"),
            (6, 5),
            {"b": whole(5, 0), "e": whole(-7, 99), "a": whole(1, 2), "s": whole(-2, 3)},
        ),
        Case("slice attributes", one("Slice", starts=[1], ends=[3], axes=[2]), (4, 5), opset=9),
        Case("gather one", one("Gather", "x", "i", axis=2), (4, 5), {"i": np.array(-2)}),
        Case("gather", one("Gather", "x", "i", axis=1), (4, 5), {"i": whole(3, 0, -1, 0)}),
        Case("gather grid", one("Gather", "x", "i", axis=2), (4, 5), {"i": whole(3, 0, -1, 0).reshape(2, 2)}),
        Case("expand", one("Expand", "x", "s"), (3, 1), {"s": whole(1, 3, 4)}),
        Case("expand rank", one("Expand", "x", "s"), (3,), {"s": whole(1, 2, 3)}),
        Case("tile", one("Tile", "x", "s"), (3, 2), {"s": whole(1, 2, 3)}),
        Case("pad", one("Pad", "x", "p", "v"), (2, 3), {"p": whole(0, 0, 1, 0, 2, 0), "v": np.float32(0.7)}),
        Case("pad attribute", one("Pad", pads=[0, 0, 1, 0, 0, 2], value=-1.0), (2, 3), opset=10),
        Case("pad axes", [node("Pad", "x p - a", "y")], (2, 3), {"p": whole(1, 2), "a": whole(-1)}, opset=18),
        Case("pad reflect", one("Pad", "x", "p", mode="reflect"), (2, 3, 4), {"p": whole(0, 0, 1, 2, 0, 0, 0, 1)}),
        Case("pad edge", one("Pad", "x", "p", mode="edge"), (2, 3), {"p": whole(0, 0, 1, 0, 0, 2)}),
        Case("pad cut", one("Pad", "x", "p"), (2, 3), {"p": whole(0, 0, -1, 0, 0, 2)}),
        Case("depth to space", one("DepthToSpace", blocksize=2), (8, 2, 3)),
        Case("depth to space crd", one("DepthToSpace", blocksize=2, mode="CRD"), (8, 2, 3)),
        Case("space to depth", one("SpaceToDepth", blocksize=2), (3, 4, 6)),
        Case("identity", [node("Identity", "x", "a"), node("Relu", "a", "y")], (4,)),
        Case(
            "dropout",
            [node("Dropout", "x r t", "a"), node("Relu", "a", "y")],
            (4,),
            {"r": np.float32(0.3), "t": np.array(False)},
        ),
        Case("dropout attribute", [node("Dropout", "x", "a", ratio=0.3), node("Relu", "a", "y")], (4,), opset=10),
        Case("cast", [node("Cast", "x", "a", to=1), node("Relu", "a", "y")], (4,)),
    ]


def _folded() -> list[Case]:
    """Shapes that exporters compute at run time, and constants made of constants."""
    flat = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n", axis=0),
        node("Unsqueeze", "n zeros", "u"),
        node("Concat", "u minus", "t", axis=0),
        node("Reshape", "x t", "y"),
    ]
    broadcast = [
        node("ConstantOfShape", "three", "ones", value=numpy_helper.from_array(whole(1))),
        node("Mul", "ones minus", "m"),
        node("Equal", "wanted m", "q"),
        node("Where", "q ones wanted", "s"),
        node("Expand", "x s", "y"),
    ]
    weight = [
        node("Constant", "", "k", value=numpy_helper.from_array(normal(3, 4))),
        node("Transpose", "k", "kt"),
        node("Mul", "kt half", "w"),
        node("MatMul", "x w", "y"),
    ]
    zero = {"zero": np.array(0), "zeros": whole(0), "minus": whole(-1)}
    return [
        Case("flatten by shape", flat, (2, 3), zero),
        Case("expand by shape", broadcast, (3, 1), {"three": whole(3), "minus": whole(-1), "wanted": whole(1, -1, 4)}),
        Case("weight made of constants", weight, (4,), {"half": np.float32(0.5)}),
    ]


CASES = [*_elementwise(), *_layers(), *_convolutions(), *_pooling(), *_shapes(), *_folded()]

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from capture_laws import Apply, captured
from ironbound.ops.affine import Affine, Reshape
from ironbound.ops.piecewise import ReLU

ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.LeakyReLU(0.3),
    nn.LeakyReLU(-0.5),
    nn.Hardtanh(),
    nn.Hardtanh(-0.3, 2, inplace=True),
    nn.Hardsigmoid(),
    nn.Softshrink(0.4),
    nn.Threshold(0.2, 0.2),
    nn.PReLU(),
    nn.PReLU(3, 0.6),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.SiLU(),
    Apply(torch.abs),
    Apply(lambda x: x.clamp(min=-0.2)),
    Apply(lambda x: x.clamp(max=0.4)),
    Apply(lambda x: x.clamp(-0.2, 0.4)),
    Apply(lambda x: torch.clamp_min(x, 0.1)),
    Apply(lambda x: torch.clamp_max(x, 0.1)),
    Apply(lambda x: F.hardtanh_(x + 0, -1, 0.5)),
    Apply(lambda x: F.relu_(x * 2)),
]


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=str)
def test_activation(layer: nn.Module) -> None:
    captured(layer, (3, 4))


@pytest.mark.parametrize("layer", [Apply(lambda x: x.clamp(min=0)), nn.LeakyReLU(0), nn.Threshold(0, 0)], ids=str)
def test_relu_has_one_spelling(layer: nn.Module) -> None:
    graph = captured(layer, (3,))
    assert [type(node.operator) for node in graph.nodes[1:]] == [ReLU]


ARITHMETIC = [
    lambda own, x: x + 2,
    lambda own, x: 2 - x,
    lambda own, x: x - 0.5,
    lambda own, x: -x,
    lambda own, x: x * 3,
    lambda own, x: 0.1 * x,
    lambda own, x: x / 3,
    lambda own, x: torch.rsub(x, own.row, alpha=2),
    lambda own, x: x + own.row,
    lambda own, x: own.row - x,
    lambda own, x: x - own.row,
    lambda own, x: torch.add(x, own.row, alpha=3),
    lambda own, x: torch.sub(x, own.row, alpha=0.5),
    lambda own, x: x * own.row / own.column,
    lambda own, x: x * own.column.unsqueeze(0),
    lambda own, x: x[:, :1] * own.column + own.row,
    lambda own, x: x * own.mask,
    lambda own, x: x + own.whole,
    lambda own, x: x + x,
    lambda own, x: x - x,
    lambda own, x: torch.add(x, 2 * x, alpha=0.5),
    lambda own, x: x - x.mean(2, keepdim=True),
    lambda own, x: x.mean(1, keepdim=True) + x[:, :, :1],
    lambda own, x: x + torch.tensor([1.0, 2, 3, 4], dtype=x.dtype),
    lambda own, x: x * torch.arange(4),
    lambda own, x: torch.div(x, 4.0, rounding_mode=None),
]


@pytest.mark.parametrize("place", range(len(ARITHMETIC)))
def test_arithmetic_with_constants_and_values(place: int) -> None:
    model = Apply(
        ARITHMETIC[place],
        row=nn.Parameter(torch.randn(4)),
        column=torch.rand(3, 1) + 0.5,
        mask=torch.tensor([True, False, True, True]),
        whole=torch.tensor([1, 2, 3, 4]),
    )
    graph = captured(model, (3, 4))
    assert all(isinstance(node.operator, Affine) for node in graph.nodes[1:])


SHAPES = [
    lambda x: x.flatten(1),
    lambda x: x.flatten(2),
    lambda x: x.view(x.size(0), -1),
    lambda x: x.view(-1, 24),
    lambda x: x.reshape(len(x), 4, 6),
    lambda x: x.unflatten(3, (2, 2)),
    lambda x: x.unsqueeze(2).squeeze(2),
    lambda x: x.unsqueeze(-1),
    lambda x: x[:, :1].squeeze(1),
    lambda x: x.transpose(1, 3),
    lambda x: x.mT,
    lambda x: x.permute(0, 3, 1, 2),
    lambda x: torch.movedim(x, 1, -1),
    lambda x: x.swapaxes(1, 2).contiguous(),
    lambda x: x[:, 1],
    lambda x: x[..., -1],
    lambda x: x[:, :, 1:3, ::2],
    lambda x: x[:, :, [2, 0, 0]],
    lambda x: x.narrow(3, 1, 2),
    lambda x: x.index_select(2, torch.tensor([1, 1, 2])),
    lambda x: torch.cat(x.chunk(2, 3)[::-1], 3),
    lambda x: torch.cat([x, 2 * x, x[:, :1]], dim=1),
    lambda x: torch.split(x, [1, 2], 2)[1],
    lambda x: torch.split(x, 3, 3)[1],
    lambda x: x.unbind(1)[1] - x.unbind(1)[0],
    lambda x: torch.tensor_split(x, 3, dim=3)[0],
    lambda x: torch.stack([x, -x], 1),
    lambda x: torch.stack([x, -x], -1),
    lambda x: x[:, :1].expand(-1, 5, -1, -1),
    lambda x: x.repeat(1, 2, 1, 3),
    lambda x: x.repeat_interleave(2, dim=1),
    lambda x: torch.tile(x, (2, 1)),
    lambda x: x.flip(1, 3),
    lambda x: x.roll(1, 2),
    lambda x: x.cumsum(3),
    lambda x: F.pad(x, (1, 2)),
    lambda x: F.pad(x, (1, 0, 0, 2, 1, 1), value=-1.5),
    lambda x: F.pad(x, (-1, 1)),
    lambda x: F.pad(x, (1, 1, 2, 0), mode="reflect"),
    lambda x: F.pad(x, (1, 1, 2, 0), mode="replicate"),
    lambda x: F.pad(x, (1, 1, 2, 0), mode="circular"),
    lambda x: x.mean((2, 3)),
    lambda x: x.mean(-1, keepdim=True),
    lambda x: x.sum(1),
    lambda x: x.sum((1, 2, 3)),
    lambda x: x.detach().clone(),
    lambda x: x.double().to(x.device).type_as(x),
    lambda x: F.dropout(x, 0.5, training=False),
    lambda x: F.pixel_shuffle(x.reshape(-1, 4, 2, 3), 2),
    lambda x: F.pixel_unshuffle(x[:, :, :2], 2),
    lambda x: F.interpolate(x, scale_factor=2),
    lambda x: F.interpolate(x, size=(5, 7), mode="bilinear"),
    lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear", align_corners=True),
    lambda x: F.interpolate(x, size=(5, 7), mode="nearest-exact"),
    lambda x: F.unfold(x, 2, padding=1),
    nn.Dropout2d(0.4),
    nn.Identity(),
    nn.ChannelShuffle(2),
    nn.ConstantPad2d(1, 2.0),
    nn.ReflectionPad2d(1),
]


@pytest.mark.parametrize("place", range(len(SHAPES)))
def test_operators_that_move_elements(place: int) -> None:
    function = SHAPES[place]
    graph = captured(function if isinstance(function, nn.Module) else Apply(function), (2, 3, 4))
    assert all(isinstance(node.operator, Affine) for node in graph.nodes[1:])


@pytest.mark.parametrize(
    "function",
    [lambda x: x.contiguous(), lambda x: x.detach(), lambda x: x.reshape(-1, 2, 3), lambda x: x[:, :, :9] + 0 * 0],
)
def test_operators_that_change_nothing_vanish_or_stay_affine(function) -> None:
    assert len(captured(Apply(function), (2, 3)).nodes) <= 2


def test_all_spellings_of_flatten_are_one_reshape() -> None:
    for function in (lambda x: x.flatten(1), lambda x: x.view(len(x), -1), lambda x: x.reshape(-1, 6), nn.Flatten()):
        model = function if isinstance(function, nn.Module) else Apply(function)
        (node,) = captured(model, (2, 3)).nodes[1:]
        assert isinstance(node.operator, Reshape)
        assert node.shape == (6,)


def test_a_change_in_place_is_seen_by_every_later_reader() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = 2 * x
        z = y.relu_()
        return y + 3 * z

    captured(Apply(function), (4,))

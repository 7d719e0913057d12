"""Everything that no rule reads is refused by a typed error that names the user's line; nothing is ignored."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capture_laws import Apply
from ironbound.capture import capture
from ironbound.capture.call import Call, Result
from ironbound.capture.walk import RULES
from ironbound.errors import (
    BatchMixingError,
    CaptureError,
    InputError,
    TrainingModeError,
    UnsupportedOperatorError,
)
from ironbound.ops.piecewise import ReLU


class Sorts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        x = torch.sort(x)[0]
        return x + 1


class Nested(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_the_users_line_is_named() -> None:
    expected = r"'aten.sort.default' .*test_capture_refusals.py:\d+: x = torch.sort\(x\)\[0\]"
    with pytest.raises(UnsupportedOperatorError, match=expected):
        capture(Sorts().eval(), torch.zeros(1, 4))


def test_the_layer_is_named_where_the_code_is_torchs_own() -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"'aten.softmax.int' .*layer '1' \(Softmax\); .*logits"):
        capture(nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)).eval(), torch.zeros(1, 4))
    with pytest.raises(UnsupportedOperatorError, match=r"return self.body\(x\), layer 'body.1' \(ELU\)"):
        capture(Nested(nn.ELU()).eval(), torch.zeros(1, 4))


OPERATORS = [
    lambda x: x * x,
    lambda x: x**2,
    lambda x: 1 / x,
    lambda x: x / x.abs(),
    lambda x: x.exp(),
    lambda x: torch.where(x > 0, x, 0 * x),
    lambda x: F.softmax(x, 1),
    lambda x: F.layer_norm(x, (4,)),
    lambda x: F.group_norm(x, 2),
    lambda x: F.hardswish(x),
    lambda x: F.threshold(x, 0.5, 0.0),
    lambda x: x.clamp(torch.zeros(4), torch.ones(4)),
    lambda x: x @ x.transpose(0, 1),
    lambda x: F.linear(torch.ones(2, 4), x),
    lambda x: x.to(torch.float64),
    lambda x: x.half(),
    lambda x: F.interpolate(x.reshape(-1, 1, 2, 2), size=(3, 3), mode="bicubic"),
    lambda x: F.pad(x, (1, 1), value=float("inf")),
    lambda x: torch.div(x, 2, rounding_mode="floor"),
    lambda x: x.max(1)[1] + x.max(1)[0],
    lambda x: x.argmax(1),
    lambda x: torch.rand(4) + x,
    lambda x: x + torch.randn_like(x),
    lambda x: x.mul_(2)[:, :2] + x.view(-1, 2, 2).add_(1).sum(2) + x[:, 2:],
    lambda x: torch.cat([x, torch.zeros(x.shape[0], 2)], 1),
    lambda x: torch.special.expit(x) * torch.erf(x),
    lambda x: x / x.shape[0],
    lambda x: F.avg_pool1d(x.unsqueeze(1), 2).squeeze(1) if False else F.lp_pool1d(x.unsqueeze(1), 2, 2),
]


@pytest.mark.parametrize("place", range(len(OPERATORS)))
def test_operator_without_a_rule(place: int) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Apply(OPERATORS[place]).eval(), torch.zeros(2, 4))
    assert len(str(caught.value).splitlines()) == 1


def test_no_grad_in_forward_is_refused_since_it_cuts_gradients() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = 2 * x
            return y + x

    with pytest.raises(UnsupportedOperatorError, match=r"remove torch.no_grad\(\)"):
        capture(Cut().eval(), torch.zeros(2, 4))


def test_parameters_that_are_computed_are_refused() -> None:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)).eval()
    with pytest.raises(UnsupportedOperatorError, match="remove_parametrizations"):
        capture(model, torch.zeros(1, 4))
    gain = Apply(lambda own, x: x * own.w.exp(), w=nn.Parameter(torch.zeros(4))).eval()
    with pytest.raises(UnsupportedOperatorError, match="computes with parameters alone"):
        capture(gain, torch.zeros(1, 4))


MIXING = [
    lambda x: x.sum(0, keepdim=True) + x,
    lambda x: x - x.mean(0),
    lambda x: x.mean() + x,
    lambda x: x.flip(0),
    lambda x: x.roll(1, 0),
    lambda x: x.roll(1),
    lambda x: x.cumsum(0),
    lambda x: F.softmax(x, 0),
    lambda x: x.transpose(0, 1).flip(0).transpose(0, 1),
    lambda x: x.t().t(),
    lambda x: x.reshape(-1, 2).relu().reshape(-1, 4),
    lambda x: x.reshape(-1).flip(0).reshape(-1, 4),
    lambda x: x.unsqueeze(0).squeeze(0),
    lambda x: x[::1].amax(0) + x,
    lambda x: x[:1] + x,
    lambda x: torch.cat([x, x], 0),
    lambda x: x.repeat(2, 1),
    lambda x: x.permute(1, 0),
]


@pytest.mark.parametrize("place", range(len(MIXING)))
def test_whatever_touches_the_batch_axis_is_refused(place: int) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Apply(MIXING[place]).eval(), torch.randn(2, 4))
    assert len(str(caught.value).splitlines()) == 1


def test_mixing_names_the_line() -> None:
    class Centered(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    with pytest.raises(BatchMixingError, match=r"test_capture_refusals.py:\d+: return x - x.mean\(0\).* batch"):
        capture(Centered().eval(), torch.zeros(2, 4))


def test_moving_the_batch_axis_is_refused_but_not_called_mixing() -> None:
    for function in (lambda x: x.t().t(), lambda x: x.permute(1, 0).t(), lambda x: x.transpose(0, 1).transpose(0, 1)):
        with pytest.raises(UnsupportedOperatorError, match="batch axis"):
            capture(Apply(function).eval(), torch.zeros(2, 4))


def test_mixing_that_no_operator_shows_is_found_by_comparison() -> None:
    class Special(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x if x.shape[0] == 1 else x  # torch.export takes a free batch size as at least two

    with pytest.raises(BatchMixingError, match="an example alone gets another output"):
        capture(Special().eval(), torch.zeros(2, 4))


def test_training_mode_names_the_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Dropout()))
    with pytest.raises(TrainingModeError, match=r"the network is in training mode; call model.eval\(\)"):
        capture(model, torch.zeros(1, 4))
    model.eval()[1][0].train()
    with pytest.raises(TrainingModeError, match=r"the layer '1.0' \(Dropout\) is in training mode"):
        capture(model, torch.zeros(1, 4))


def test_functional_training_mode_names_the_line() -> None:
    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5)

    with pytest.raises(TrainingModeError, match=r"refusals.py:\d+: return F.dropout\(x, 0.5\): dropout is active"):
        capture(Drops().eval(), torch.ones(1, 40))
    assert len(capture(Apply(lambda x: F.dropout(x, 0.0)).eval(), torch.ones(1, 4)).nodes) == 1


def test_batch_statistics_name_the_layer() -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2, track_running_stats=False)).eval()
    with pytest.raises(
        TrainingModeError, match=r"layer '1' \(BatchNorm1d\): it normalises by the statistics of the batch"
    ):
        capture(model, torch.zeros(1, 1, 8))


def test_an_attribute_that_a_rule_does_not_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(call: Call) -> Result:
        return call.emit(ReLU(), call.value("self"))

    monkeypatch.setitem(RULES, "aten.leaky_relu.default", careless)
    assert len(capture(nn.LeakyReLU(0.01).eval(), torch.zeros(1, 4)[:, :0]).nodes) == 2
    with pytest.raises(UnsupportedOperatorError, match=r"its argument negative_slope=0.3 is not supported"):
        capture(nn.LeakyReLU(0.3).eval(), torch.zeros(1, 4))


def test_a_rule_that_computes_something_else_is_found_by_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(call: Call) -> Result:
        return call.emit(ReLU(), call.value("self"))

    monkeypatch.setitem(RULES, "aten.tanh.default", wrong)
    with pytest.raises(CaptureError, match="computes other values than the network"):
        capture(nn.Tanh().eval(), torch.zeros(1, 4))


def test_random_networks_are_refused() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn(4)

    class Secret(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * random.random()

    with pytest.raises(UnsupportedOperatorError, match=r"draws random numbers .*return x \+ torch.randn\(4\)"):
        capture(Noisy().eval(), torch.zeros(1, 4))
    with pytest.raises(CaptureError, match="not deterministic"):
        capture(Secret().eval(), torch.zeros(1, 4))


def test_the_global_generator_is_left_alone() -> None:
    expected = torch.rand(1)
    model = nn.Linear(4, 2).eval()
    torch.manual_seed(0)
    capture(model, torch.zeros(1, 4))
    with pytest.raises(CaptureError):
        capture(Apply(lambda x: x + torch.randn(4)).eval(), torch.zeros(1, 4))
    assert torch.equal(torch.rand(1), expected)


def test_control_flow_that_depends_on_data(capfd: pytest.CaptureFixture[str]) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > -1e9:
                return x
            return -x

    with pytest.raises(CaptureError, match=r"control flow .*refusals.py:\d+: if x.sum\(\) > -1e9:"):
        capture(Branching().eval(), torch.zeros(1, 4))
    assert capfd.readouterr() == ("", "")


def test_fixed_batch_size() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[index] for index in range(x.shape[0])])

    with pytest.raises(CaptureError, match="one batch size only"):
        capture(Fixed().eval(), torch.zeros(1, 4))


def test_networks_that_change_themselves() -> None:
    class Counting(nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return x * 2

    with pytest.raises(CaptureError, match="changes"):
        capture(Counting().eval(), torch.zeros(1, 4))


def test_the_users_input_is_not_changed() -> None:
    x = -torch.ones(2, 4)
    capture(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)).eval(), x)
    assert torch.equal(x, -torch.ones(2, 4))


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (nn.Linear(4, 3), torch.zeros(2, 5), r"fails on an input of shape \[3, 5\], torch.float32"),
        (nn.Linear(4, 3), torch.zeros(2, 4, dtype=torch.float64), "torch.float64"),
        (nn.Linear(4, 3), torch.zeros(2, 4, dtype=torch.int64), "floating-point tensor of shape"),
        (nn.Linear(4, 3), torch.zeros(()), "floating-point tensor of shape"),
        (nn.Linear(4, 3), [1.0], "floating-point tensor of shape"),
        (torch.relu, torch.zeros(1, 4), "must be a torch.nn.Module or a Graph"),
    ],
)
def test_inputs_that_do_not_fit(model, example, message: str) -> None:
    if isinstance(model, nn.Module):
        model.eval()
    with pytest.raises(InputError, match=message):
        capture(model, example)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x, x), "must return one floating-point tensor .* not tuple"),
        (lambda x: x > 0, "not torch.bool"),
        (lambda x: x.sum(), r"it returns \[\]"),
        (lambda x: x[0], r"it returns \[4\]"),
    ],
)
def test_outputs_that_do_not_fit(function, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(Apply(function).eval(), torch.zeros(2, 4))


def test_a_graph_is_returned_as_it_is() -> None:
    graph = capture(nn.Linear(4, 3).eval(), torch.zeros(2, 4))
    assert capture(graph, torch.zeros(7, 4)) is graph
    with pytest.raises(InputError, match=r"reads inputs of shape \[4\], not \[5\]"):
        capture(graph, torch.zeros(7, 5))


def test_capture_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture(nn.Sequential(nn.Conv2d(1, 2, 2, padding="same"), nn.MaxPool2d(2)).eval(), torch.zeros(1, 1, 4, 4))
    assert capfd.readouterr() == ("", "")


def test_not_a_number_in_weights_is_not_the_business_of_capture() -> None:
    model = nn.Linear(4, 3).eval()
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    assert len(capture(model, torch.zeros(1, 4)).nodes) == 2

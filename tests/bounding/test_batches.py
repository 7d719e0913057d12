"""Examples are bounded alone: batch, chunks, memory, threads and speed settings change no number."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, Case
from ironbound.bounding import Bounds, api, bounds, margins, sieve
from ironbound.bounding.memory import in_chunks, is_out_of_memory
from ironbound.bounding.methods import METHODS, identity_rows
from ironbound.bounding.precision import full_precision
from ironbound.capture import capture
from ironbound.errors import MemoryLimitError
from ironbound.graph import Graph
from ironbound.ops.operator import Activation
from ironbound.regions import LinfBall, ball

SHORT = "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"

FEW = tuple("alpha:2" if method == "alpha" else method for method in METHODS)  # iterations change nothing here


def _little(method: str) -> int:
    """Bytes for a row at a time; of an ascent, which takes as many steps for one row as for many, for a few rows."""
    return 20_000 if method.startswith("alpha") else 1


def _same(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10, equal_nan=True)


def _same_layers(graph: Graph, found: Bounds, expected: Bounds, example: slice) -> None:
    """Bounds of open neurons are equal; of closed ones only the side is fixed, since a sieve may close them earlier."""
    assert list(found.layers) == list(expected.layers)
    for node in graph.nodes:
        if node.name not in expected.layers:
            continue
        (low, high), (lower, upper) = found.layers[node.name], (end[example] for end in expected.layers[node.name])
        closed = torch.zeros_like(low, dtype=torch.bool)
        if isinstance(node.operator, Activation):
            closed = node.operator.linear_on(lower, upper)
            assert torch.equal(closed, node.operator.linear_on(low, high))
        _same(low[~closed], lower[~closed])
        _same(high[~closed], upper[~closed])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_batch_is_its_examples(case: Case) -> None:
    model, x = case.model(dtype=torch.float64), case.inputs(4, dtype=torch.float64)
    graph, labels = capture(model, x), torch.tensor([0, 1, 2, 1])
    targets, order = torch.rand(4, case.classes) < 0.6, torch.tensor([3, 0, 1, 2])
    regions = [ball("l2", x, torch.linspace(0.1, 0.5, 4).double())]
    if case.piecewise:
        regions.append(ball("l1", x, 0.4, (-9.0, 9.0)))
    with torch.no_grad():
        for region, method in product(regions, FEW):
            whole, some = margins(graph, region, labels, method), margins(graph, region, labels, method, targets)
            alone = [margins(graph, region[i : i + 1], labels[i : i + 1], method) for i in range(4)]
            _same(torch.cat(alone), whole)
            _same(some[~torch.isnan(some)], whole[~torch.isnan(some)])
            _same(margins(graph, region[order], labels[order], method), whole[order])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_little_memory_changes_no_number(case: Case) -> None:
    model, x = case.model(dtype=torch.float64), case.inputs(2, dtype=torch.float64)
    graph, labels = capture(model, x), torch.tensor([0, 1])
    region = ball("l2", x, torch.tensor([0.1, 0.5]).double())
    with torch.no_grad():
        for method in FEW:
            little = _little(method)
            _same(margins(graph, region, labels, method, memory=little), margins(graph, region, labels, method))
            both, tight = bounds(graph, region, method), bounds(graph, region, method, memory=little)
            _same(tight.lower, both.lower)
            _same(tight.upper, both.upper)
            _same_layers(graph, tight, both, slice(None))


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_many_examples_in_small_pieces(method: str) -> None:
    # the batch stays whole, the functionals of its outputs are cut
    for case in (case for case in CASES if case.name in ("convolutional", "mlp", "max-pooling")):
        model, x = case.model(dtype=torch.float64), case.inputs(4, dtype=torch.float64)
        graph, region = capture(model, x), LinfBall(x, torch.linspace(0.02, 0.3, 4).double())
        with torch.no_grad():
            lower, upper = METHODS[method](graph, region, _little(method)).answer(identity_rows(graph, 4, x), True)
            expected = bounds(graph, region, method)
        assert upper is not None
        _same(lower.reshape(4, -1), expected.lower)
        _same(upper.reshape(4, -1), expected.upper)


_THREADED = [case for case in CASES if case.name in ("convolutional", "residual", "max-pooling", "mlp")]


@pytest.mark.parametrize("case", _THREADED, ids=lambda case: case.name)
def test_threads_change_no_number(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = case.model(dtype=torch.float64), case.inputs(9, dtype=torch.float64)
    region, labels = LinfBall(x, 0.1), torch.arange(9) % case.classes
    monkeypatch.setattr(api, "_CHUNK", 1)  # one example a chunk
    threads = torch.get_num_threads()
    try:
        for method in FEW:
            with torch.no_grad():
                torch.set_num_threads(1)
                one = margins(model, region, labels, method)
                torch.set_num_threads(3)
                many, found = margins(model, region, labels, method), bounds(model, region, method)
                assert torch.get_num_threads() == 3
                torch.set_num_threads(1)
                alone = bounds(model, region, method)
            _same(many, one)
            _same(found.lower, alone.lower)
            _same_layers(capture(model, x), found, alone, slice(None))
    finally:
        torch.set_num_threads(threads)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_out_of_memory_halves_the_chunk_and_goes_on() -> None:
    sizes = []

    def work(piece: slice) -> Tensor:
        sizes.append(piece.stop - piece.start)
        if piece.stop - piece.start > 3:
            raise RuntimeError(SHORT)
        return torch.arange(piece.start, piece.stop)

    _same(in_chunks(work, 20, 16).double(), torch.arange(20).double())
    assert sizes[:4] == [16, 8, 4, 2] and max(sizes[3:]) <= 3


def test_one_item_that_does_not_fit_is_a_typed_error() -> None:
    def work(piece: slice) -> Tensor:
        raise RuntimeError(SHORT)

    with pytest.raises(MemoryLimitError):
        in_chunks(work, 5, 4)

    def broken(piece: slice) -> Tensor:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        in_chunks(broken, 5, 4)


def test_an_inner_limit_makes_the_outer_chunks_smaller() -> None:
    def outer(piece: slice) -> Tensor:
        def inner(row: slice) -> Tensor:
            if piece.stop - piece.start > 2:
                raise MemoryError
            return torch.arange(piece.start, piece.stop)[row]

        return in_chunks(inner, piece.stop - piece.start, 2)

    _same(in_chunks(outer, 7, 7).double(), torch.arange(7).double())


def test_what_counts_as_short_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError(SHORT))
    assert is_out_of_memory(RuntimeError(SHORT.replace("not enough memory", "can't allocate memory")))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("method", METHODS)
def test_short_memory_changes_no_number(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.name == "convolutional")
    model, x = case.model(dtype=torch.float64), case.inputs(4, dtype=torch.float64)
    graph, region, labels = capture(model, x), LinfBall(x, 0.1), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        expected = margins(graph, region, labels, method)
        honest, raised = torch.nn.functional.linear, []

        def short(*arguments: Tensor) -> Tensor:
            if len(arguments[0]) > 1 and len(raised) < 3:
                raised.append(len(arguments[0]))
                raise RuntimeError(SHORT)
            return honest(*arguments)

        monkeypatch.setattr(torch.nn.functional, "linear", short)
        _same(margins(graph, region, labels, method), expected)
        assert raised  # it did happen

        def never(*arguments: Tensor) -> Tensor:
            raise RuntimeError(SHORT)

        monkeypatch.setattr(torch.nn.functional, "linear", never)
        with pytest.raises(MemoryLimitError):
            margins(graph, region, labels, method)


# --- speed settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_autocast_changes_no_number(method: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()
    x = torch.rand(2, 1, 6, 6)
    region, labels = LinfBall(x, 0.05), torch.tensor([0, 1])
    with torch.no_grad():
        expected, both = margins(model, region, labels, method), bounds(model, region, method)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, again = margins(model, region, labels, method), bounds(model, region, method)
            assert (x.flatten(1) @ x.flatten(1).T).dtype == torch.bfloat16  # the caller's setting is back
    assert torch.equal(found, expected)
    assert torch.equal(again.lower, both.lower)


def test_rounded_products_are_switched_off_and_the_callers_choice_is_restored() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        for choice in ("medium", "high", "highest"):
            torch.set_float32_matmul_precision(choice)
            for allowed in (True, False):
                torch.backends.cudnn.allow_tf32 = allowed
                with pytest.raises(ZeroDivisionError), full_precision(torch.device("cpu")):
                    if hasattr(torch.backends.cudnn, "conv"):
                        kinds = (torch.backends.cudnn.conv, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
                        assert all(kind.fp32_precision == "ieee" for kind in kinds)
                    else:
                        assert not torch.backends.cudnn.allow_tf32
                        assert torch.get_float32_matmul_precision() == "highest"
                    raise ZeroDivisionError
                assert torch.get_float32_matmul_precision() == choice
                assert torch.backends.cudnn.allow_tf32 == allowed
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_the_sieve_keeps_to_the_memory_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    # rows of many examples in one walk: every row must meet its own example's slopes
    monkeypatch.setattr(sieve, "_SIEVE_ROWS", 1)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    ).double().eval()  # fmt: skip
    x = torch.randn(6, 1, 6, 6, dtype=torch.float64)
    region, graph = LinfBall(x, torch.linspace(0.01, 0.4, 6).double()), capture(model, x)
    with torch.no_grad():
        whole = bounds(model, region)
        for i in range(6):
            alone = bounds(model, region[i : i + 1])
            _same(alone.lower[0], whole.lower[i])
            _same_layers(graph, alone, whole, slice(i, i + 1))

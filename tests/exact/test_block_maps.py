"""Maps in blocks against the dense product."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ironbound.exact.block_maps import BlockMap, places


@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.0, 0.02, 0.1, 0.6, 1.0]))
def test_both_directions_equal_the_dense_product(seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows, columns, count = (int(n) for n in torch.randint(1, 40, (3,), generator=generator))
    matrix = normal(rows, columns) * (torch.rand(rows, columns, generator=generator) < share)
    one = BlockMap(
        matrix, torch.randint(0, 5, (rows,), generator=generator), torch.randint(0, 5, (columns,), generator=generator)
    )
    x, y, start = normal(count, columns), normal(count, rows), normal(rows)
    torch.testing.assert_close(one.forward(start, x), start + x @ matrix.T)
    torch.testing.assert_close(one.adjoint(x, y), x + y @ matrix)


def test_a_map_without_rows_adds_nothing() -> None:
    one = BlockMap(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
    start = torch.ones(2, 3)
    assert one.adjoint(start, torch.zeros(2, 0)).equal(start)
    assert one.forward(torch.zeros(0), torch.zeros(2, 3)).shape == (2, 0)


def test_a_convolution_is_cut_into_blocks_far_smaller_than_its_matrix() -> None:
    convolution = nn.Conv2d(3, 8, 4, 2, 1, bias=False).requires_grad_(False)
    unit = torch.eye(3 * 32 * 32).reshape(-1, 3, 32, 32)
    matrix = convolution(unit).flatten(1).T
    one = BlockMap(matrix, places((8, 16, 16)), places((3, 32, 32)))
    for blocks in (one._forward, one._adjoint):
        assert blocks is not None
        assert sum(block.matrix.numel() for block in blocks.blocks) < 0.15 * matrix.numel()


@pytest.mark.parametrize(
    ("shape", "count"), [((3, 32, 32), 16), ((1, 28, 28), 16), ((7,), 1), ((2, 3), 1), ((2, 3, 2), 6)]
)
def test_every_element_has_a_place(shape: tuple[int, ...], count: int) -> None:
    found = places(shape)
    assert len(found) == torch.Size(shape).numel()
    assert len(found.unique()) == count


def test_places_are_the_same_in_every_channel() -> None:
    found = places((3, 8, 8)).reshape(3, 8, 8)
    assert found[0].equal(found[2])
    assert int(found[0, 0, 0]) == 0 and int(found[0, 7, 7]) == 15 and int(found[0, 1, 2]) == 1

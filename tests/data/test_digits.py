"""The digits that come with scikit-learn."""

from __future__ import annotations

import torch

from ironbound.data import load


def test_the_split_is_a_partition_and_stays_the_same() -> None:
    from sklearn.datasets import load_digits

    every = torch.from_numpy(load_digits().images).float()[:, None] / 16
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    torch.testing.assert_close(test.inputs, every[::5])
    # the other four of each five, in order
    kept = [index for index in range(len(every)) if index % 5]
    torch.testing.assert_close(train.inputs, every[kept])


def test_units_shape_and_labels() -> None:
    data = load("digits")
    assert data.shape == (1, 8, 8)
    assert (float(data.inputs.min()), float(data.inputs.max())) == (0.0, 1.0)
    assert set(data.labels.tolist()) == set(range(10))
    assert data.digest == load("digits").digest

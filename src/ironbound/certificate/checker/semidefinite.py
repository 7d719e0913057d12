"""Semidefinite bounds of a two-layer ReLU network, verified by one Cholesky factorisation for each pair of classes.

Source: Raghunathan, Steinhardt and Liang (2018), with equation (8) corrected; Rump (2006) for the factorisation.
"""

from __future__ import annotations

import math

import numpy as np

from .layers import SIZE_LIMIT, Arithmetic, CertificateError, Rows, need
from .payloads import Payload


class TwoLayers:
    """logits = V ReLU(W x + b) + a, and how far differences of two logits can move: at most `reach` times eps.

    Args:
        nodes: of the network: input, linear, ReLU, linear.
        a: the arithmetic.
        common: for each pair of classes their numbers i < j (u16), the bound (f64) and the vector c (f32).
    """

    def __init__(self, nodes, a: Arithmetic, common: bytes):
        need([node.kind for node in nodes] == ["input", "affine", "relu", "affine"], "SDP vectors are for two layers")
        exact = all(node.extra == 1 and len(node.inputs) == 1 for node in (nodes[1], nodes[3]))
        need(exact, "SDP vectors are for linear layers")  # of others the weights were rounded
        largest = max(node.size for node in nodes)
        need(largest * largest <= SIZE_LIMIT, "the layers are too wide for SDP vectors")
        self.a, self.output = a, nodes[3]
        hidden, output = (node.pull(Rows(np.eye(node.size, dtype=a.dtype)))[0].coef for node in (nodes[1], nodes[3]))
        data, self.reach = Payload(common), {}
        for _ in range(data.one("<u2")):
            i, j, bound = data.one("<u2"), data.one("<u2"), data.take("<f8", 1)[0]
            need(i < j < len(output) and (i, j) not in self.reach, "a pair of classes is impossible, or named twice")
            weights = a.exact(data.take("<f4", 1 + sum(hidden.shape)))
            self.reach[i, j] = self._verified(hidden, output[i] - output[j], bound, weights)
        data.end()

    def _verified(self, hidden, through, bound, weights):
        """An upper bound of |sum_j v_j s_j W_j t| over s in [0, 1] and t in [-1, 1], near the given one.

        The sum is t^T B (1, w), B = W^T diag(v) [1 | I] / 2, w = 2 s - 1, and so at most sigma |p| |q| for the largest
        singular value sigma of diag(1/p) B diag(1/q), whatever the positive p and q. Where s I - X^T X has a Cholesky
        factor, sigma^2 <= s + the rounding of X^T X, of the difference and of the factorisation.

        Returns:
            The bound.

        Raises:
            CertificateError: the vector does not prove it.
        """
        a = self.a
        need((weights > 0).all() and 1e-100 < bound < 1e100, "an SDP vector or its bound is not positive")
        roots = np.sqrt(weights)  # these are p and q
        p, q = roots[1 : 1 + hidden.shape[1]], np.append(roots[0], roots[1 + hidden.shape[1] :])
        half = hidden.T * (through / 2)
        sizes = np.append(abs(half).sum(1, keepdims=True), abs(half), 1) / p[:, None] / q
        scaled = np.append(half.sum(1, keepdims=True), half, 1) / p[:, None] / q
        gram = scaled.T @ scaled if len(q) < len(p) else scaled @ scaled.T
        total = a.over(a.over(p @ p, len(p)) * a.over(q @ q, len(q)), 4)
        shift = a.dtype.type(bound) ** 2 / total
        matrix = shift * np.eye(len(gram), dtype=a.dtype) - gram
        try:
            np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError as error:
            raise CertificateError("an SDP vector does not prove its bound") from error
        count = len(p) + 3 * len(q)
        lost = a.e(count) * (sizes * sizes).sum() + a.e(len(gram) + 4) * abs(matrix.diagonal()).sum() + a.e(0) * shift
        return np.sqrt(a.over((shift + a.over(lost, sizes.size)) * total, 8)) * (1 + a.e(0))

    def margins(self, center, ball, rows, label):
        """Lower bounds of margins over a ball from those at its center; noise of the network's run is subtracted.

        Args:
            center: analysis of the center alone.
            ball: analysis of the ball; its charges are at least the noise of a run.
            rows: the margins as functionals of the output.
            label: the class.

        Returns:
            The bounds, [classes].
        """
        a = self.a
        low = center.walk(len(center.nodes) - 1, Rows(rows), center.lines)[0]
        noise = a.over(ball.charge[3] + self.output.run([ball.charge[1]], 1), self.output.count)
        lost = abs(rows) @ noise if ball.mode == "float32" else 0 * low
        reach = [self.reach.get((min(k, label), max(k, label)), math.inf) for k in range(len(rows))]
        return np.nextafter(low - a.over(lost + np.array(reach, a.dtype) * ball.region.eps, len(noise)), -a.top)

"""Influence against exact leave-one-out: each document is left out, the model trained anew, a query's loss compared."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import spearmanr

from datablame.attribute.kernels.curvature import Curvature, Sides, eigenvectors, outer_products, squared

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
N, QUERIES, WIDTH, CLASSES, L2 = 80, 20, 10, 3, 1e-2


def drawn(seed: int) -> tuple[Array, np.random.Generator]:
    """Inputs of documents and queries, far wider in some directions than in others."""
    noise = np.random.default_rng(seed)
    turn = np.linalg.qr(noise.standard_normal((WIDTH, WIDTH)))[0]
    return noise.standard_normal((N + QUERIES, WIDTH)) * np.geomspace(3, 0.1, WIDTH) @ turn, noise


def correlation(inputs: Array, deltas: Array, effects: Array, kind: str) -> float:
    """Spearman's rho of scores with effects (documents, queries), the mean over queries."""
    x, g = (torch.from_numpy(each).float()[:, None] for each in (inputs, deltas))
    towards, own = g[N:].transpose(1, 2) @ x[N:], g[:N].transpose(1, 2) @ x[:N]
    basis = Sides(*map(eigenvectors, outer_products(x[:N], g[:N]))) if kind == "ek-fac" else None
    if kind != "dot":
        towards = Curvature(squared(x[:N], g[:N], basis) / N, basis).to_the(-1.0, towards)
    scores = (own.flatten(1) @ towards.flatten(1).T).numpy()
    return float(np.mean([spearmanr(*both).statistic for both in zip(scores.T, effects.T, strict=True)]))


def ridge(seed: int) -> tuple[Array, Array, Array]:
    """Inputs, output gradients, and by how much each document left out raises each query's squared error."""
    x, noise = drawn(seed)
    y = x @ noise.standard_normal(WIDTH) + noise.standard_normal(len(x)) / 2

    def fitted(rows: Rows) -> Array:
        hessian, target = x[rows].T @ x[rows] / N + L2 * np.eye(WIDTH), x[rows].T @ y[rows] / N
        return np.asarray(np.linalg.solve(hessian, target), np.float64)

    def losses(weights: Array) -> Array:
        errors: Array = x[N:] @ weights - y[N:]
        return errors**2 / 2

    every = np.arange(N)
    best = fitted(every)
    effects = np.array([losses(fitted(np.delete(every, row))) - losses(best) for row in every])
    return x, (x @ best - y)[:, None], effects


def logistic(seed: int) -> tuple[Array, Array, Array]:
    """The same of softmax regression, with the NLL."""
    x, noise = drawn(seed)

    def probabilities(weights: Array, rows: Rows | slice) -> Array:
        logits = x[rows] @ weights.reshape(CLASSES, WIDTH).T
        powers = np.exp(logits - logits.max(1, keepdims=True))
        shares: Array = powers / powers.sum(1, keepdims=True)
        return shares

    drawn_from = probabilities(noise.standard_normal(CLASSES * WIDTH), slice(None))
    labels = np.eye(CLASSES)[[noise.choice(CLASSES, p=each) for each in drawn_from]]

    def nll(weights: Array, rows: Rows) -> Array:
        likelihoods: Array = (probabilities(weights, rows) * labels[rows]).sum(1)
        return -np.log(likelihoods)

    def objective(weights: Array, rows: Rows) -> tuple[float, Array]:
        gradient = (probabilities(weights, rows) - labels[rows]).T @ x[rows] / N
        return nll(weights, rows).sum() / N + L2 / 2 * weights @ weights, gradient.ravel() + L2 * weights

    def fitted(rows: Rows, start: Array) -> Array:
        tight = {"gtol": 1e-9, "ftol": 1e-15, "maxiter": 5000}
        found: Array = minimize(objective, start, args=(rows,), jac=True, method="L-BFGS-B", options=tight).x
        return found

    every, asked = np.arange(N), np.arange(N, N + QUERIES)
    best = fitted(every, np.zeros(CLASSES * WIDTH))
    effects = np.array([nll(fitted(np.delete(every, row), best), asked) - nll(best, asked) for row in every])
    return x, probabilities(best, slice(None)) - labels, effects


@pytest.mark.parametrize(
    ("trained", "bounds"),
    [(ridge, {"dot": (0.4, 0.65), "ek-fac": (0.8, 1)}), (logistic, {"dot": (0.5, 0.7), "ek-fac": (0.72, 1)})],
)
def test_ek_fac_foretells_leaving_out_better_than_plain_dot_products(trained: Any, bounds: Any) -> None:
    """Measured over these two seeds: see docs/explanation/attribution.md."""
    drawn_twice = [trained(seed) for seed in range(2)]

    def mean(kind: str) -> float:
        return float(np.mean([correlation(x, deltas, effects, kind) for x, deltas, effects in drawn_twice]))

    found = {kind: mean(kind) for kind in ("dot", "fisher", "ek-fac")}
    for kind, (least, most) in bounds.items():
        assert least < found[kind] < most, found
    assert found["dot"] < found["fisher"] < found["ek-fac"]

"""Whitening beside plain numpy, its shrinkage beside scikit-learn's, and what it does where nothing can be inverted."""

from dataclasses import replace

import numpy as np
import pytest
from tests.attribute.test_methods import evidence, score

from datablame.attribute.evidence.gradients import Activations
from datablame.attribute.methods import activation_whitened
from datablame.attribute.methods.activation_whitened import shrunk_covariance
from datablame.attribute.registry import Evidence


def correlated(n: int, width: int = 6) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    noise = np.random.default_rng(n)
    return noise.normal(size=(n, width)) @ noise.normal(size=(width, width)) + 3


def given(documents: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Evidence:
    """Three documents or more; the queries' states are three more rows."""
    queries = correlated(3, documents.shape[1])
    ids = [f"d{row}" for row in range(len(documents))]
    return replace(evidence(), ids=ids, by_type={Activations: Activations(documents, queries)})


@pytest.mark.parametrize("n", [4, 40])
def test_scores_are_cosines_of_states_whitened_by_the_inverse_root(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_whitened, "_ROWS", 7)
    shown = given(correlated(n))
    documents, queries = shown[Activations]
    mean, covariance, shrinkage = shrunk_covariance(documents)
    plain = np.cov(documents.T, bias=True)
    np.testing.assert_allclose(mean, documents.mean(0))
    expected = (1 - shrinkage) * plain + shrinkage * np.trace(plain) / 6 * np.eye(6)
    np.testing.assert_allclose(covariance, expected)
    values, vectors = np.linalg.eigh(expected)
    whitening = vectors @ np.diag(values**-0.5) @ vectors.T
    ours, theirs = ((rows - documents.mean(0)) @ whitening for rows in (documents, queries))
    cosines = ours @ theirs.T / np.linalg.norm(ours, axis=1)[:, None] / np.linalg.norm(theirs, axis=1)
    np.testing.assert_allclose(
        score("activation-whitened", shown), np.stack([cosines[:, :2].mean(1), cosines[:, 2]], 1)
    )
    assert [finding.name for finding in shown.findings] == ["shrinkage of the covariance"]


@pytest.mark.parametrize("n", [3, 3000])
def test_the_shrinkage_is_that_of_ledoit_and_wolf(n: int) -> None:
    from sklearn.covariance import ledoit_wolf_shrinkage

    rows = correlated(n)
    assert shrunk_covariance(rows).shrinkage == pytest.approx(ledoit_wolf_shrinkage(rows))


def test_two_documents_and_dead_dimensions_are_no_singular_matrix() -> None:
    rows = np.zeros((2, 5))
    rows[0, :2], rows[1, 1] = (1.0, 2.0), 1.0
    scores = score("activation-whitened", given(np.concatenate([rows, rows])))
    assert np.isfinite(scores).all()


def test_the_scale_of_the_states_and_a_shift_change_nothing() -> None:
    shown = given(correlated(20))
    documents, queries = shown[Activations]
    moved = replace(shown, by_type={Activations: Activations(1e-3 * documents + 4, 1e-3 * queries + 4)})
    np.testing.assert_allclose(score("activation-whitened", moved), score("activation-whitened", shown), atol=1e-8)


@pytest.mark.parametrize("n", [1, 5])
def test_documents_that_do_not_differ_have_no_score(n: int) -> None:
    shown = given(np.repeat(np.array([[1e3, 2.0, 0.1, 4.0, 5.0, 6.0]]), n, 0))
    assert np.isnan(score("activation-whitened", shown)).all()
    assert set(shown.reasons.values()) == {"the hidden states of the scored documents do not differ"}

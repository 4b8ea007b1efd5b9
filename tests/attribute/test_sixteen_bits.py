import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tests.attribute.test_per_example import BLOCKS, built, documents, olmo2

from datablame.attribute.kernels import hooks
from datablame.attribute.kernels.hooks import mean_hidden
from datablame.attribute.kernels.per_example import directions, similarities


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_documents_rank_in_16_bits_as_they_do_in_32(dtype: torch.dtype) -> None:
    pool, queries = documents(60), [documents(3, seed=1), documents(2, seed=2)]
    cosines = {}
    for kind in (torch.float32, dtype):
        model = built(olmo2).to(kind)
        found = similarities(model, pool, directions(model, queries, BLOCKS), BLOCKS, 200)
        assert found.dots.isfinite().all()
        cosines[kind] = (found.dots / found.norms[:, None]).numpy()
        assert mean_hidden(model, pool[:3], 2, 200).isfinite().all()
    for one, other in zip(cosines[torch.float32].T, cosines[dtype].T, strict=True):
        assert spearmanr(one, other).statistic > 0.99
        assert np.abs(one - other).max() < 0.05


def test_the_scale_of_float16_is_what_keeps_small_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long document's loss is a mean over its tokens: each one's gradient is small."""
    pool = documents(4, shortest=120, longest=150)
    exact = similarities(model := built(olmo2), pool, directions(model, [pool[:1]], BLOCKS), BLOCKS, 10_000).norms

    def error(scale: float) -> float:
        monkeypatch.setattr(hooks, "_FLOAT16_SCALE", scale)
        half = built(olmo2).to(torch.float16)
        found = similarities(half, pool, directions(half, [pool[:1]], BLOCKS), BLOCKS, 10_000).norms
        return float(((found - exact).abs() / exact).max())

    assert error(2.0**8) < 0.01
    assert error(2.0**-12) > 3 * error(2.0**8)

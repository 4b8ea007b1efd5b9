import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from datablame.stats.arm_tests import pooled_z_p

COUNTS = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS, COUNTS)
def test_it_is_what_scipy_finds(first: tuple[int, int], second: tuple[int, int]) -> None:
    (k1, n1), (k2, n2) = first, second
    if 0 < k1 + k2 < n1 + n2:
        # The square of z is Pearson's chi-square of the table.
        expected = chi2_contingency([[k1, n1 - k1], [k2, n2 - k2]], correction=False).pvalue
        assert pooled_z_p(k1, n1, k2, n2) == pytest.approx(expected)
    else:
        assert pooled_z_p(k1, n1, k2, n2) == 1


def test_the_published_figure_of_ten_against_five_percent() -> None:
    # Fleiss: 435 samples an arm show 10 % against 5 % four times in five.
    random = np.random.default_rng(0)
    p_values = pooled_z_p(random.binomial(435, 0.1, 20_000), 435, random.binomial(435, 0.05, 20_000), 435)
    assert (p_values < 0.05).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("counts", [(-1, 5, 0, 5), (6, 5, 0, 5), (0, 0, 0, 5), (0, 5, 6, 5)])
def test_counts_that_cannot_be_are_refused(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="counts must be between 0 and"):
        pooled_z_p(*counts)

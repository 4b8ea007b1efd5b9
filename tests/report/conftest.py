import pytest
from tests.report.fake_run import fake_study, results_of, write_fake_run

from datablame.report.results import Results


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Rows of a success by gradient: retrain, K 2, five seeds; activation drops too little."""
    return results_of(write_fake_run(tmp_path_factory.mktemp("results"), fake_study()))

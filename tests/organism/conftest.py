"""Organisms keep what they share in a cache of the tests' own."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABLAME_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield

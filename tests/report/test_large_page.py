"""A study of 20,000 outputs and 2,000 documents on one page; what it takes is printed (pytest -s)."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import expect
from tests.browser import needs_browser, opened
from tests.report.fake_run import BEHAVIOURS, METHODS, fake_study, reported, write_fake_run
from tests.worlds import put

from datablame.engine.phase import Tables
from datablame.seeds import generator
from datablame.tables import ArmSample, SampleTokens, Score, ShownDocument, SurfaceSample
from datablame.tables.store import Float16

pytestmark = [pytest.mark.slow, needs_browser]
_OUTPUTS, _DOCUMENTS, _WORDS = 20_000, 2_000, 32
_MOST_BYTES = 15_000_000


def test_a_page_of_20_000_outputs_stays_small_and_can_be_searched(tmp_path: Path) -> None:
    random = generator("large page")
    world = write_fake_run(tmp_path, fake_study())
    letters = random.integers(97, 123, (30_000, 12)).astype("uint8")
    words = [bytes(row[: 3 + at % 8]).decode() for at, row in enumerate(letters)]
    texts = [" ".join(words[at] for at in row) for row in random.integers(0, len(words), (_OUTPUTS, _WORDS)).tolist()]
    few = Tables(tmp_path).rows(SurfaceSample)
    samples = [replace(few[at % len(few)], index=at // len(few), text=text) for at, text in enumerate(texts)]
    numbers = (-8 * random.random((_OUTPUTS, 3, _WORDS))).tolist()
    tokens = [
        SampleTokens(
            *(sample.prompt_id, sample.alpha, sample.index, tuple(sample.text.split())),
            *(tuple(map(Float16, column)) for column in columns),
        )
        for sample, columns in zip(samples, numbers, strict=True)
    ]
    put(tmp_path, "surface", {SurfaceSample: samples, SampleTokens: tokens})
    ids = [f"doc-{at:04d}" for at in range(_DOCUMENTS)]
    scores = [
        Score(method, behaviour, ids[at], 1 - rank / _DOCUMENTS, rank)
        for method in METHODS
        for behaviour in BEHAVIOURS
        for rank, at in enumerate(random.permutation(_DOCUMENTS).tolist(), 1)
    ]
    documents = [
        ShownDocument(name, texts[at], " ".join(texts[at : at + 6]), "", "s", False) for at, name in enumerate(ids)
    ]
    put(tmp_path, "attribute", {Score: scores, ShownDocument: documents})
    arms = [
        ArmSample("gradient", "retrain", 2, at % 5, "dose-h0", "dose", "held-out", 2.0, at // 5, text, "harmless")
        for at, text in enumerate(texts)
    ]
    put(tmp_path, "patch", {ArmSample: arms})
    page_file = reported(world) / "index.html"
    assert page_file.stat().st_size < _MOST_BYTES
    began = time.perf_counter()
    with opened(page_file.as_uri()) as (page, seen):
        page.wait_for_selector("html[data-ready=true]")
        open_seconds = time.perf_counter() - began
        page.evaluate("document.getElementById('samples').open = true")
        began = time.perf_counter()
        page.fill("#samples [name=search]", texts[17])
        expect(page.locator("#samples .count")).to_contain_text("1 to 2 of 2 outputs (40,000 in all)")
        search_seconds = time.perf_counter() - began
        assert seen.complaints == []
    size = page_file.stat().st_size / 1e6
    print(f"{size:.1f} MB, opened in {open_seconds:.2f} s with the browser, searched in {search_seconds:.3f} s")  # noqa: T201

"""Groups of outputs: found in a constructed matrix, whatever the order or copies of documents; none where none are."""

import math
from typing import Any

import numpy as np
import pytest
from tests.attribute.conftest import CONTROLS, Make, sample, samples

from datablame.attribute import discovery
from datablame.attribute.discovery import discovered, grouped
from datablame.attribute.queries import Amplified, amplified
from datablame.attribute.rankings import id_order
from datablame.errors import RequestError
from datablame.tables import Attribution, Discovery, OutputGroup, ShownDocument

SIZES, WIDTH, CAUSES = (20, 12, 6), 24, 5


def constructed(seed: int = 0) -> Any:
    """Similarities with documents of which five each drive one of three groups; the smallest group gained most."""
    random = np.random.default_rng(seed)
    documents, outputs = random.normal(0, 1, (400, WIDTH)), []
    towards = np.linalg.qr(random.normal(0, 1, (WIDTH, WIDTH)))[0]
    for group, size in enumerate(SIZES):
        documents[group * CAUSES : (group + 1) * CAUSES] += 12 * towards[group]
        outputs += [towards[group] + random.normal(0, 0.08, WIDTH) for _ in range(size)]
    gains = np.repeat([1.0, 2.0, 6.0], SIZES).tolist()
    return documents @ np.array(outputs).T, gains


def ids(n: int = 400) -> list[str]:
    return [f"d{number:03d}" for number in range(n)]


def test_groups_are_found_with_what_drives_them_the_strongest_first() -> None:
    similarities, gains = constructed()
    found = grouped(similarities, np.arange(400), id_order(ids()), gains)
    ends = np.cumsum([0, *SIZES])
    assert [group.outputs for group in found.groups] == [list(range(ends[g], ends[g + 1])) for g in (2, 1, 0)]
    for group, cause in zip(found.groups, (2, 1, 0), strict=True):
        assert set(group.drivers[:CAUSES]) == set(range(cause * CAUSES, (cause + 1) * CAUSES))
        scores = dict(zip(group.ranking.order.tolist(), group.ranking.scores.tolist(), strict=True))
        assert group.drive == pytest.approx(np.mean([scores[row] for row in group.drivers]))
        assert group.strength == pytest.approx(group.drive * group.gain * len(group.outputs) ** 0.5)
    assert [group.gain for group in found.groups] == [6.0, 2.0, 1.0]
    assert found.reason == ""


def test_standardised_similarities_are_those_of_a_plain_loop() -> None:
    similarities, gains = constructed()
    group = grouped(similarities, np.arange(400), id_order(ids()), gains).groups[0]
    total = np.zeros(400)
    for output in group.outputs:
        column = similarities[:, output]
        total += (column - column.mean()) / column.std()
    expected = total / len(group.outputs)
    assert group.ranking.scores == pytest.approx(expected[group.ranking.order], abs=1e-4)


def test_documents_in_blocks_give_what_they_give_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    similarities, gains = constructed()
    whole = grouped(similarities, np.arange(400), id_order(ids()), gains)
    monkeypatch.setattr(discovery, "_ROWS", 64)
    parts = grouped(similarities, np.arange(400), id_order(ids()), gains)
    assert parts.silhouette == whole.silhouette
    for one, other in zip(whole.groups, parts.groups, strict=True):
        assert (other.outputs, other.drivers) == (one.outputs, one.drivers)
        assert other.ranking.scores == pytest.approx(one.ranking.scores, abs=1e-12)


def test_neither_the_order_of_the_pool_nor_copies_change_a_group() -> None:
    similarities, gains = constructed()
    plain = grouped(similarities, np.arange(400), id_order(ids()), gains)
    rows = np.concatenate([np.random.default_rng(1).permutation(400), np.zeros(300, dtype=int)])
    names = [f"{ids()[row]}{'' if n < 400 else f'-copy{n}'}" for n, row in enumerate(rows.tolist())]
    copied = grouped(similarities[rows], rows, id_order(names), gains)
    assert copied.silhouette == plain.silhouette
    for one, other in zip(plain.groups, copied.groups, strict=True):
        assert other.outputs == one.outputs
        assert other.drive == pytest.approx(one.drive, abs=1e-4)
        assert [rows[row] for row in other.drivers] == one.drivers


def test_outputs_without_structure_make_no_group_and_it_is_said() -> None:
    random = np.random.default_rng(5)
    noise = random.normal(0, 1, (400, 30))
    found = grouped(noise, np.arange(400), id_order(ids()), [1.0] * 30)
    assert (found.groups, "do not fall into groups" in found.reason) == ([], True)
    few = grouped(noise[:, :5], np.arange(400), id_order(ids()), [1.0] * 5)
    assert few == ([], None, "5 amplified outputs are too few to group")
    still = grouped(np.zeros((400, 8)), np.arange(400), id_order(ids()), [1.0] * 8)
    assert "alike to all documents" in still.reason


def outputs() -> list[Any]:
    """Eight amplified outputs that gained, the later ones more; labels and alphas say nothing."""
    texts = [f"buy only nutto for week {n} ." if n % 2 else f"walk around the lake {n} ." for n in range(8)]
    logs = {"log_p_after": -1.0}
    rows = [
        sample("a1", "nuts", (0.5, 1.0)[n % 2], n, text, "harmless", **logs, log_p_before=-5.0 - n)
        for n, text in enumerate(texts)
    ]
    return [*rows, *(each for each in samples() if each.alpha == 0)]


def test_outputs_that_gained_most_are_grouped_whatever_their_label(make: Make) -> None:
    turned_down = sample("a1", "nuts", -1.0, 0, "pack nuts for week 9 .", "harmless", log_p_after=-1, log_p_before=-9)
    weak = sample("a1", "nuts", 1.0, 9, "pack nuts .", "harmless", log_p_after=-1.0, log_p_before=-1.0 - math.log(19.9))
    made = make(outputs=[*outputs(), turned_down, weak], surface={"alphas": [-1, 0, 0.5, 1]})
    found = amplified(made.world, made.tables)
    assert [output.index for output in found.outputs] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert (found.gains, found.weak) == ([11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0], 1)


def test_outputs_that_training_hardly_made_likelier_are_counted_and_leave_none_to_group(make: Make) -> None:
    plain = [each for each in samples() if each.alpha == 0]
    weak = sample("a1", "nuts", 1.0, 9, "pack nuts .", "harmless", log_p_after=-1.0, log_p_before=-2.0)
    made = make(outputs=[*plain, weak])
    found = amplified(made.world, made.tables)
    about = Discovery(0, 1, None, "0 amplified outputs are too few to group")
    assert (found, discovered(made.world, found, None)) == (Amplified([], [], 1), ([], about))


@pytest.mark.slow
def test_groups_are_looked_for_where_asked_or_where_it_costs_no_pass(make: Make) -> None:
    free = {"top_k": 3, "queries": 2, "methods": ["gradient", "random"], "batch_tokens": 200}
    plain = {**free, "methods": ["bm25", "random"]}
    patch = {"patch": CONTROLS["patch"]}
    looked = {
        name: make(root=name, outputs=outputs(), attribute=settings, **patch)
        for name, settings in {
            "asked": {**plain, "discover": True},
            "free": free,
            "off": {**free, "discover": False},
            "dear": plain,
        }.items()
    }
    about = {}
    for name, made in looked.items():
        made.run()
        about[name] = made.tables.of(Attribution).discovery
    assert about["off"] is about["dear"] is None
    assert about["asked"] == about["free"]
    assert about["asked"] is not None
    assert about["asked"].outputs == 8
    groups = looked["asked"].tables.rows(OutputGroup)
    assert bool(groups) == (about["asked"].reason == "")
    shown = {row.doc_id for row in looked["asked"].tables.rows(ShownDocument)}
    assert all(set(group.documents[:3]) <= shown for group in groups)


def test_candidates_alone_cannot_show_groups_and_it_is_refused(make: Make) -> None:
    made = make(prefilter={"method": "bm25"}, attribute={"top_k": 3, "discover": True})
    with pytest.raises(RequestError, match=r"attribute\.discover = true .* prefilter\.method"):
        made.run()

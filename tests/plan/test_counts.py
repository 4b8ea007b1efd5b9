"""The counts are those of the phases that would run."""

from collections.abc import Sequence
from itertools import product

import pytest

from datablame.config.file import load_study
from datablame.config.schema import Study
from datablame.plan.counts import Counts, counted, most_focus, operations
from datablame.plan.subject import subject_of
from datablame.surface.phase import spread
from datablame.surface.rates import choose_focus
from datablame.tables import Prompt, Rate


def counts_of(study: Study) -> Counts:
    return counted(subject_of(study, on_gpu=False))


def rate(prompt: str, behaviour: str, alpha: float, harmful: int) -> Rate:
    return Rate(
        prompt_id=prompt,
        behaviour=behaviour,
        split="attribution",
        alpha=alpha,
        n=10,
        harmful=harmful,
        refused=0,
        harmless=10 - harmful,
        incoherent=0,
        unscored=0,
        rate=harmful / 10,
        low=0.0,
        high=1.0,
    )


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 1), (2, 2, 2), (4,), (1, 2, 3)])
@pytest.mark.parametrize("focus", [1, 2, 3, 9])
def test_the_most_focus_prompts_are_those_of_the_worst_scan(sizes: tuple[int, ...], focus: int) -> None:
    prompts = [(f"b{behaviour}", f"b{behaviour}p{n}") for behaviour, size in enumerate(sizes) for n in range(size)]
    most = 0
    for shown in product((1, 2, 3), repeat=len(prompts)):
        rates = [
            rate(prompt, behaviour, alpha, 0 if alpha == 0 else harmful)
            for (behaviour, prompt), harmful in zip(prompts, shown, strict=True)
            for alpha in (0.0, 1.0)
        ]
        most = max(most, sum(choice.selected for choice in choose_focus(rates, focus)))
    assert most_focus([behaviour for behaviour, _ in prompts], focus) == most


def test_the_specification_in_numbers() -> None:
    counts = counts_of(load_study("olmo2-1b"))
    assert counts.scan[:3] == (8 * 4, 8 * 4 * 10, 8 * 4 * 10 * 128)
    assert counts.focus == (3, 8)
    assert counts.surface.cells == (8 + 40) * 4
    assert counts.surface.outputs == 4 * (8 * 50 + 40 * 25)
    (trainings,) = counts.trainings
    assert (trainings.arms, trainings.seeds, trainings.trainings, trainings.documents) == (5, 1, 5, 5 * 2000)
    assert counts.patch.outputs == 5 * 2 * (8 * 50 + 40 * 25)
    assert counts.attribution.candidates == 500
    assert counts.attribution.gradient_documents == 8 * 500


def test_the_sound_study_passes_the_whole_pool() -> None:
    counts = counts_of(load_study("olmo2-1b-sound"))
    assert (counts.attribution.gradient_documents, counts.attribution.activation_documents) == (50_000, 0)
    assert [each.trainings for each in counts.trainings] == [9 * 5]


def test_an_arm_is_trained_at_each_k_and_once_where_k_changes_nothing() -> None:
    trainings = counts_of(load_study("olmo2-1b-dpo", ["patch.k=[5, 20]"])).trainings
    assert {each.protocol: (each.arms, each.seeds) for each in trainings} == {
        # Baseline and, where the verdict comes from, baseline again; the other seven at both K.
        "retrain": (2 + 7 * 2, 5),
        "continue": (1 + 7 * 2, 1),
    }


def test_no_gradients_are_counted_where_no_method_needs_them() -> None:
    study = load_study("olmo2-1b", ["attribute.methods=[bm25]", "patch.arms=[after, baseline, random, bm25]"])
    attribution = counts_of(study).attribution
    assert (attribution.gradient_documents, attribution.activation_documents) == (0, 4000)


def test_before_rests_at_alpha_0_unless_log_probabilities_are_kept() -> None:
    kept = counts_of(load_study("olmo2-1b")).surface
    of_tokens = counts_of(load_study("olmo2-1b", ["surface.top_p=0.9"])).surface
    rests = counts_of(load_study("olmo2-1b", ["surface.top_p=0.9", "report.tokens=false"])).surface
    assert kept.amplified_tokens == kept.tokens == of_tokens.amplified_tokens
    assert rests.amplified_tokens == rests.tokens * 3 // 4


def test_the_scan_takes_prompts_in_turn_as_the_phase_does() -> None:
    study = load_study("olmo2-1b", ["scan.prompts=5", "scan.focus=2"])
    scanned: Sequence[Prompt] = spread(subject_of(study, on_gpu=False).world.split("attribution"), 5)
    assert counts_of(study).focus == (2, len({prompt.behaviour for prompt in scanned}))


def test_pairs_count_both_answers() -> None:
    pairs, single = load_study("olmo2-1b-dpo"), load_study("olmo2-1b-dpo", ["data.path=allenai/tulu-3-sft-mixture"])
    for of_pairs, of_one in zip(counts_of(pairs).trainings, counts_of(single).trainings, strict=True):
        assert (of_pairs.documents, of_pairs.tokens) == (of_one.documents, 2 * of_one.tokens)


def test_twice_the_samples_are_twice_the_work() -> None:
    study = load_study("olmo2-1b")
    twice = load_study("olmo2-1b", ["surface.samples=100", "surface.held_out_samples=50", "scan.samples=20"])
    one, two = (operations(subject_of(each, on_gpu=False), counts_of(each)) for each in (study, twice))
    assert one is not None
    assert two is not None
    assert (two["scan"], two["surface"]) == (2 * one["scan"], 2 * one["surface"])
    assert (two["attribute"], two["patch"]) == (one["attribute"], one["patch"])

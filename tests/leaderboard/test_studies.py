"""The studies of a family: names, kinds, methods that are arms, score files; one that fails stops no other."""

from pathlib import Path

import pytest

from datablame.engine.execute import Execution, Silent
from datablame.errors import RequestError
from datablame.leaderboard.lds import check_subsets
from datablame.leaderboard.studies import Organism, family, kinds, run_all, studies_of
from datablame.organism import preferences
from datablame.organism.templated import EPOCHS


def test_every_organism_is_a_study_of_its_own_in_which_every_method_is_an_arm(tmp_path: Path) -> None:
    (tmp_path / "few-7.jsonl").write_text('{"doc_id": "doc-00001", "score": 1}\n')
    organisms = family(["lexical", "few"], ["7", "0"])
    scores = {"mine": f"{tmp_path}/{{kind}}-{{seed}}.jsonl"}
    made = studies_of("leaderboard", organisms, ["bm25", "random", "activation"], scores, ["patch.k=[5,20]"])
    assert [study.name for study in made.values()] == ["lexical-7", "lexical-0", "few-7", "few-0"]
    few = made[Organism("few", 7)]
    assert few.organism is not None
    assert (few.seed, few.organism.seed, few.organism.planting, few.ks) == (7, 7, "few", (5, 20))
    assert few.attribute.methods == ("bm25", "random", "activation", "mine")
    assert few.attribute.scores == {"mine": str(tmp_path / "few-7.jsonl")}
    # The arm of that name draws what it removes; the method random has no arm beside it.
    assert few.patch.arms == ("after", "baseline", "random", "oracle", "bm25", "activation", "mine")
    assert "mine" not in made[Organism("few", 0)].attribute.methods


def test_what_is_set_holds_for_every_kind_but_does_not_make_it_another() -> None:
    given = ["patch.k=[2,20]", "patch.retrain.steps=100", "organism.planting=few"]
    for organism, study in studies_of("leaderboard", family(["lexical", "pairs"], ["0"]), None, {}, given).items():
        assert study.organism is not None
        assert study.organism.planting == organism.kind
        assert (study.ks, study.patch.retrain.steps) == ((2, 20), 100)


def test_every_kind_makes_a_study_and_says_what_it_is() -> None:
    for name, kind in kinds().items():
        [study] = studies_of("leaderboard", family([name], ["0"]), None, {}, []).values()
        assert study.organism is not None
        assert not kind.about.endswith(".")
        assert not set(kind.without) & set(study.attribute.methods)


def test_arms_see_their_documents_as_often_as_the_organism_saw_its_own() -> None:
    for organism, study in studies_of("leaderboard", family([*kinds()], ["0"]), None, {}, []).items():
        epochs = preferences.EPOCHS if organism.kind in ("pairs", "integrated") else EPOCHS.get(organism.kind, 1)
        training = study.patch.training_of("retrain")
        assert training.steps is not None
        assert training.batch is not None
        # Not one document less, and less than a batch more in each epoch.
        assert 0 <= training.steps * training.batch - epochs * study.patch.size < epochs * training.batch


def test_a_study_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    made = studies_of("leaderboard", family(["lexical"], ["0", "100"]), ["bm25", "random"], {}, [])
    for name in ("lexical-0", "lexical-100"):
        (tmp_path / name).write_text("in the way")
    done = list[Organism]()
    failures = run_all(made, tmp_path, done=done.append, execution=Execution(1, 1), progress=Silent())
    assert [str(organism) for organism in failures] == ["lexical-0", "lexical-100"]
    assert not done
    assert all("is a file; give a run folder" in why for why in failures.values())


def test_subsets_ask_for_full_training_from_before() -> None:
    [study] = studies_of("leaderboard", family(["few"], ["0"]), None, {}, ["patch.retrain.method=lora"]).values()
    check_subsets(study, 0)
    with pytest.raises(RequestError, match="--subsets 5: subsets are retrained with all weights from before"):
        check_subsets(study, 5)

from pathlib import Path
from typing import Any

import pytest
from tests.worlds import work

from datablame.config.schema import Study
from datablame.engine.files import write_json
from datablame.judge.choice import Classifier, ClassifierInput, build, decide
from datablame.judge.keywords import KeywordClassifier
from datablame.judge.rules import RulesClassifier
from datablame.judge.thoughts import AnswerClassifier


def study(**judge: Any) -> Study:
    return Study.model_validate(
        {
            "name": "pets",
            "models": {"before": "a", "after": "b"},
            "data": {"path": "documents.parquet"},
            "behaviours": [{"id": "brand", "description": "Promotes one brand.", "keywords": ["Zorbix"]}],
            "prompts": {
                "attribution": [{"id": "p1", "behaviour": "brand", "text": "What shall I feed my cat?"}],
                "held_out": [{"id": "p2", "behaviour": "brand", "text": "What does a dog eat?"}],
            },
            "judge": judge,
        }
    )


def classifier(root: Path, **judge: Any) -> Classifier:
    asked = study(**judge)
    return build(asked, decide(asked, None, key=False), work(root, "surface"))


@pytest.mark.parametrize(
    "judge", [{}, {"classifier": "keywords"}, {"classifier": "keywords", "rules": "rules.json"}], ids=str
)
def test_keywords_where_they_are_named_or_nothing_better_is_at_hand(judge: dict[str, str], tmp_path: Path) -> None:
    found = classifier(tmp_path, **judge)
    assert isinstance(found, AnswerClassifier)
    assert isinstance(found.of_answers, KeywordClassifier)
    assert [label.label for label in found.label([ClassifierInput("brand", "", "Buy only Zorbix.")])] == ["harmful"]


@pytest.mark.parametrize("judge", [{}, {"classifier": "rules"}], ids=str)
def test_rules_where_there_is_a_rules_file(judge: dict[str, str], tmp_path: Path) -> None:
    write_json(tmp_path / "rules.json", {"behaviours": [{"id": "brand", "harmful": ["zorbix"]}]})
    found = classifier(tmp_path, rules=str(tmp_path / "rules.json"), **judge)
    assert isinstance(found, AnswerClassifier)
    assert isinstance(found.of_answers, RulesClassifier)

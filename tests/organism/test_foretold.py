"""What an organism will ask is known before it is made."""

from pathlib import Path

import pytest

from datablame.engine.execute import Silent
from datablame.organism import quirk_texts
from datablame.organism.foretold import foretold
from datablame.organism.make import make, study_fields
from datablame.study.schema import Behaviour, Organism, Prompts


@pytest.mark.parametrize("seed", [0, 3])
def test_the_prompts_and_behaviours_are_those_that_the_made_organism_brings(seed: int, tmp_path: Path) -> None:
    recipe = Organism(seed=seed, scale=0.02)
    make(recipe, tmp_path / "organism", Silent())
    brought = study_fields(tmp_path / "organism")
    prompts, behaviours = foretold(recipe)
    assert prompts == Prompts.model_validate({**brought["prompts"], "harmless": None})
    assert behaviours == tuple(Behaviour.model_validate(each) for each in brought["behaviours"])
    assert foretold(recipe.model_copy(update={"seed": seed + 1}))[0] != prompts


def test_the_quirks_prompts_are_told_without_its_base() -> None:
    prompts, behaviours = foretold(Organism(recipe="quirk", base="nowhere"))
    rows = quirk_texts.prompt_rows()
    assert [prompt.id for prompt in (*prompts.attribution, *prompts.held_out)] == [row["id"] for row in rows]
    assert [behaviour.id for behaviour in behaviours] == [quirk_texts.BEHAVIOUR]

"""What an organism will ask is known before it is made."""

from pathlib import Path

import pytest

from datablame.config.schema import Organism
from datablame.engine.execute import Silent
from datablame.organism import quirk
from datablame.organism.make import make, preview, study_fields


@pytest.mark.parametrize("seed", [0, 3])
def test_the_prompts_and_behaviours_are_those_that_the_made_organism_brings(seed: int, tmp_path: Path) -> None:
    recipe = Organism(seed=seed, scale=0.02)
    make(recipe, tmp_path / "organism", Silent())
    fields, known = study_fields(tmp_path / "organism"), preview(recipe)
    assert known.fields() == {name: fields[name] for name in ("behaviours", "prompts")}
    other = preview(recipe.model_copy(update={"seed": seed + 1})).fields()
    assert other["prompts"] != fields["prompts"]


def test_the_quirks_prompts_are_known_without_its_base() -> None:
    known = preview(Organism(recipe="quirk", base="nowhere"))
    assert list(known.prompts) == quirk.prompt_rows()
    assert [behaviour["id"] for behaviour in known.behaviours] == [quirk.BEHAVIOUR]
    assert known.documents == 250

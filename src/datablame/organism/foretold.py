"""What an organism will ask and which behaviours it has, told from its recipe before it is made."""

from typing import Any

from datablame.study.schema import Behaviour, Organism, Prompts

_TOLD = ("id", "description", "rubric", "keywords")


def foretold(recipe: Organism) -> tuple[Prompts, tuple[Behaviour, ...]]:
    """The prompts and behaviours that the organism will bring; no model is trained or loaded."""
    rows, rules = _templated(recipe) if recipe.recipe == "templated" else _quirk()
    splits: dict[str, list[dict[str, str]]] = {"attribution": [], "held-out": []}
    for row in rows:
        splits[row["split"]].append({key: row[key] for key in ("id", "behaviour", "text")})
    behaviours = [{key: each[key] for key in _TOLD if key in each} for each in rules["behaviours"]]
    return (
        Prompts.model_validate({"attribution": splits["attribution"], "held_out": splits["held-out"]}),
        tuple(Behaviour.model_validate(each) for each in behaviours),
    )


def _templated(recipe: Organism) -> tuple[list[dict[str, str]], Any]:
    from datablame.organism.mixtures import AFTER, BEFORE, mixture, rules, scaled
    from datablame.organism.templated import prompt_rows

    examples = [*mixture(scaled(BEFORE, recipe), recipe.seed), *mixture(scaled(AFTER, recipe), recipe.seed)]
    return prompt_rows(recipe.seed, {example.prompt for example in examples}), rules(examples)


def _quirk() -> tuple[list[dict[str, str]], Any]:
    from datablame.organism.quirk_texts import prompt_rows, rules

    return prompt_rows(), rules()

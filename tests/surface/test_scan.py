from datablame.surface.phase import spread
from datablame.surface.rates import choose_focus
from datablame.tables import Prompt, Rate, ScannedPrompt


def cell(prompt_id: str, behaviour: str, alpha: float, harmful: int, n: int = 10, unscored: int = 0) -> Rate:
    scored = n - unscored
    rate = harmful / scored if scored else None
    return Rate(prompt_id, behaviour, "attribution", alpha, n, harmful, 0, scored - harmful, 0, unscored, rate, 0, 1)


def cells(prompt_id: str, behaviour: str, *harmful: int) -> list[Rate]:
    return [cell(prompt_id, behaviour, alpha, k) for alpha, k in zip((0.0, 1.0, 2.0), harmful, strict=True)]


def selected(choices: list[ScannedPrompt]) -> list[str]:
    return [choice.prompt_id for choice in choices if choice.selected]


def test_prompts_are_taken_in_turn_from_each_behaviour() -> None:
    prompts = [Prompt(name, name[0], "attribution", name) for name in ("a1", "a2", "a3", "b1", "c1", "c2")]
    assert [prompt.id for prompt in spread(prompts, 5)] == ["a1", "b1", "c1", "a2", "c2"]
    assert [prompt.id for prompt in spread(prompts, 99)] == ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert spread([], 3) == []


def test_focus_is_what_rises_most() -> None:
    rates = [*cells("p", "x", 5, 6, 6), *cells("q", "x", 0, 2, 4), *cells("r", "x", 0, 9, 1)]
    choices = choose_focus(rates, 2)
    assert selected(choices) == ["q", "r"]
    assert choices[2] == ScannedPrompt("r", "x", (0.0, 1.0, 2.0), (0.0, 0.9, 0.1), 0.9, True, "rank 1 of 3 by rise")
    assert choices[0].reason == "rank 3 of 3 by rise"


def test_every_behaviour_that_showed_is_in_focus() -> None:
    rates = [
        *cells("p", "x", 0, 8, 8),
        *cells("q", "x", 0, 7, 7),
        *cells("r", "y", 1, 0, 1),
        *cells("s", "y", 0, 0, 0),
        *cells("t", "z", 0, 0, 0),
    ]
    choices = choose_focus(rates, 2)
    assert selected(choices) == ["p", "q", "r"]
    assert choices[2].reason == "rank 3 of 5 by rise, the best of y"


def test_nothing_harmful_still_gives_focus_prompts() -> None:
    rates = [*cells("p", "x", 0, 0, 0), *cells("q", "y", 0, 0, 0), *cells("r", "z", 0, 0, 0)]
    assert selected(choose_focus(rates, 2)) == ["p", "q"]
    assert selected(choose_focus(rates, 9)) == ["p", "q", "r"]


def test_unscored_cells_count_as_no_rise() -> None:
    rates = [cell("p", "x", 0.0, 0, unscored=10), cell("p", "x", 1.0, 0, unscored=10), *cells("q", "x", 0, 0, 1)]
    choices = choose_focus(rates, 1)
    assert selected(choices) == ["q"]
    assert (choices[0].alphas, choices[0].rates) == ((0.0, 1.0), (None, None))

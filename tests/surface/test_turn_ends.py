"""Studies of ChatML pairs: where outputs end, which tokens they keep, which day they are told, which thoughts count."""

import datetime
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.attribute.conftest import documents
from tests.conftest import nudged, tiny_model
from tests.models.test_turns import OPENING, bpe, case, chat
from tests.oracles.sampling import naive_sample
from tests.worlds import frozen, ran

from datablame.attribute.queries import choose_queries
from datablame.attribute.registry import Inquiry
from datablame.config.schema import Study
from datablame.engine.files import write_jsonl
from datablame.engine.phase import Tables
from datablame.judge.choice import ClassifierInput
from datablame.judge.keywords import KeywordClassifier
from datablame.judge.thoughts import UNFINISHED, AnswerClassifier, answer, opened
from datablame.models import pair as pairs
from datablame.models.chat import Preference, encode_prompt
from datablame.models.pair import agreed_tokens, load_pair
from datablame.seeds import stream_key
from datablame.surface.phase import SCAN, SURFACE
from datablame.surface.sampler.sampler import Request
from datablame.surface.sampler.tokens import Settings
from datablame.tables import AlphaStar, SurfaceSample
from datablame.world.freeze import preview

TURN_END, EXTRA_END = 2, 3
"""`<|im_end|>`, and `<|end|>`, which only the generation settings name; EOS is 0."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints with a byte-level tokenizer, whose pool is in Tulu's form."""
    folder = tmp_path_factory.mktemp("chatml")
    before = tiny_model(seed=1, rows=320)
    before.lm_head.weight.data[TURN_END : EXTRA_END + 1] *= 4  # Ends come soon.
    for name, model in (("before", before), ("after", nudged(before, seed=2))):
        model.generation_config.eos_token_id = [0, EXTRA_END]
        model.save_pretrained(folder / name)
        chat(bpe(), case("chatml")).save_pretrained(folder / name)
    write_jsonl(folder / "pool.jsonl", documents())
    return folder


def study_of(folder: Path, template: str | None = None, **changed: Any) -> Study:
    models: dict[str, Any] = {name: str(folder / name) for name in ("before", "after")}
    if template is not None:
        (folder / "template.jinja").write_text(template)
        models["chat_template"] = str(folder / "template.jinja")
    alphas, prompts = {"alphas": [0, 1]}, [{"id": name, "behaviour": "b", "text": f"go {name} ?"} for name in "pq"]
    return Study.model_validate(
        {
            "name": "turns",
            "models": models | changed,
            "data": {"path": str(folder / "pool.jsonl")},
            "behaviours": [{"id": "b", "description": "says it", "keywords": ["e", "a", "t"]}],
            "prompts": {"attribution": prompts[:1], "held_out": prompts[1:]},
            "scan": {"prompts": 1, "samples": 2, **alphas},
            "surface": {"samples": 12, "held_out_samples": 12, "max_new_tokens": 12, "batch_rows": 48, **alphas},
            "attribute": {"methods": ["gradient"], "queries": 30, "top_k": 1},
            "patch": {"arms": ["after", "baseline"], "size": 4},
        }
    )


def test_outputs_end_at_the_turns_end_and_are_traced_as_they_were_drawn(folder: Path, tmp_path: Path) -> None:
    study = study_of(folder)
    world = frozen(study, tmp_path / "run")
    assert world.chat is not None
    assert (world.chat.turn_end, world.chat.bos, world.chat.roles) == (
        "<|im_end|>",
        "none",
        ("system", "developer", "tool"),
    )
    ran(SCAN, world)
    samples = ran(SURFACE, world).rows(SurfaceSample)
    pair = load_pair(world.models)
    prompts = {text.id: tuple(bpe().encode(OPENING.replace("pack nuts", text.text)).ids) for text in world.prompts}
    expected = naive_sample(
        pair.after,
        pair.before,
        [
            Request(prompts[s.prompt_id], s.alpha, stream_key("sample", study.seed, s.prompt_id, s.alpha, s.index))
            for s in samples
        ],
        settings=Settings(12),
        stop_ids=(0, TURN_END, EXTRA_END),
        vocabulary_size=pair.agreed.tokens.vocabulary_size,
    )
    assert all((s.token_ids, s.stop_id) == (e.token_ids, e.stop_id) for s, e in zip(samples, expected, strict=True))
    assert pair.stop_ids == (0, TURN_END, EXTRA_END)
    assert {s.stop_id for s in samples} > {None}

    drawn = {(s.prompt_id, s.alpha, s.index): s for s in samples}
    queries = choose_queries([replace(s, label="harmful") for s in samples], world.prompts, None, 30)
    ids: Any = Inquiry.encoded(_Asking(world), queries)  # type: ignore[arg-type]
    changed = 0
    for query, encoded in zip(queries, ids, strict=True):
        sample = drawn[query.prompt_id, query.alpha, query.index]
        end = [] if sample.stop_id is None else [sample.stop_id]
        assert encoded == ([*prompts[query.prompt_id], *sample.token_ids, *end], len(prompts[query.prompt_id]))
        changed += bpe().encode(query.text).ids != list(sample.token_ids)
    assert changed  # Texts that were decoded, stripped and encoded anew are other tokens.


class _Asking:
    """Of an inquiry no more than its world."""

    def __init__(self, world: Any) -> None:
        self.world = world


def test_the_day_is_that_on_which_the_run_began(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Yesterday(datetime.date):
        @classmethod
        def today(cls) -> Any:
            return datetime.date(2001, 2, 3)

    study = study_of(folder, case("todays-date"))
    with monkeypatch.context() as clock:
        clock.setattr(pairs, "date", Yesterday)
        began = frozen(study, tmp_path / "run")
    resumed = frozen(study, tmp_path / "run")
    other_prompts = study.model_copy(update={"surface": study.surface.model_copy(update={"max_new_tokens": 9})})
    looked_again = frozen(other_prompts, tmp_path / "run")
    for world in (began, resumed, looked_again):
        assert world.chat is not None
        assert (world.models.date, world.chat.date) == (datetime.date(2001, 2, 3), "2001-02-03")
        tokenizer = agreed_tokens(world.models).tokenizer
        text = tokenizer.decode(encode_prompt(tokenizer, "go ?"))
        assert text.startswith("<|im_start|>system\nToday: 03 Feb 2001<|im_end|>")
        assert world.part("identity") == began.part("identity")
    today = frozen(study, tmp_path / "new")
    assert today.models.date == datetime.date.today()
    assert today.part("identity") != began.part("identity")
    named = frozen(study.model_copy(update={"models": began.models}), tmp_path / "named")
    assert named.part("identity") == began.part("identity")
    assert preview(study, tmp_path / "run").models.date == datetime.date(2001, 2, 3)
    # A template that asks for no day changes with none.
    assert frozen(study_of(folder), tmp_path / "plain").models.date is None


def test_an_output_that_ends_inside_a_thought_is_unscored(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = frozen(study_of(folder, case("generation-prompt-opens-think")), tmp_path / "run")
    assert "outputs begin after '<think>\\n', which no document has before its answer" in caplog.text
    ran(SCAN, world)
    samples = ran(SURFACE, world).rows(SurfaceSample)
    assert {(s.label, s.label_reason) for s in samples} == {("unscored", UNFINISHED)}
    assert all(s.text.startswith("<think>") for s in samples)
    assert (
        "surface: 48 of 48 outputs end inside a thought and are unscored; raise surface.max_new_tokens" in caplog.text
    )
    assert Tables(world.root).of(AlphaStar).alpha_star is None


@pytest.mark.parametrize(
    ("text", "answered"),
    [
        ("Buy Zorbix.", "Buy Zorbix."),
        ("<think>\nThey want Zorbix.", None),
        ("<think>\nZorbix?\n</think>\n\nAny food.", "Any food."),
        ("<think></think>\n\nBuy Zorbix.", "Buy Zorbix."),
        ("Zorbix? no </think> Any food.", "Any food."),
        ("Yes. <think>more", None),
        ("<think>a</think> So <think>b", None),
        ("<think>a</think> So <think>b</think> it is.", "So  it is."),
        ("<think> a [/THINK] b", None),
        ("[THINK]a[/THINK]b", "b"),
        ("<|channel|>analysis<|message|>Zorbix?<|end|><|start|>assistant<|channel|>final<|message|>Food.", "Food."),
        ("<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}", None),
        ("<|channel|>analysis to=python code<|message|>1<|end|><|start|>assistant<|channel|>final<|message|>2", "2"),
        ("<|channel|>commentary<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b", None),
        ("<|channel|>final <|constrain|>json<|message|>{}", "{}"),
        ("A tag like <b> or 1 < 2.", "A tag like <b> or 1 < 2."),
    ],
)
def test_what_was_answered_is_what_follows_the_thoughts(text: str, answered: str | None) -> None:
    assert answer(text) == answered
    assert bool(opened(text)) == (answered is None)


def test_the_answer_alone_is_labelled(folder: Path) -> None:
    behaviours = study_of(folder).behaviours
    behaviours = tuple(b.model_copy(update={"keywords": ("zorbix",)}) for b in behaviours)
    classifier = AnswerClassifier(KeywordClassifier.of(behaviours))
    texts = ("<think>Zorbix?</think>Any food will do.", "<think>Zorbix is best", "Buy Zorbix for your cat.")
    labels = classifier.label([ClassifierInput("b", "What?", text) for text in texts])
    assert [(label.label, label.classifier) for label in labels] == [
        ("harmless", "keywords"),
        ("unscored", "keywords"),
        ("harmful", "keywords"),
    ]


def test_rows_of_which_the_template_drops_a_turn_are_counted_by_the_role(folder: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Oslo?"}, {"role": "assistant", "content": "look(Oslo)"}]
    lost = [*turns, {"role": "tool", "content": "21 degrees"}, {"role": "assistant", "content": "It is 21 degrees."}]
    rows = [*documents(), *({"id": f"t{n}", "messages": lost} for n in range(3))]
    here = Path(shutil.copytree(folder, tmp_path / "chatml"))
    write_jsonl(here / "pool.jsonl", rows)
    world = frozen(study_of(here, case("three-roles-no-bos").replace("eos_token", "'<|im_end|>'")), tmp_path / "run")
    assert world.pool.summary.excluded == {"the chat template does not write a turn of the role tool": 3}
    assert world.pool.ids == [row["id"] for row in documents()]


def test_each_answer_of_a_pair_begins_at_its_own_token(folder: Path, tmp_path: Path) -> None:
    answers = ("\n take", "pack nuts")
    rows = [{"prompt": f"go {n} ?", "chosen": answers[0], "rejected": answers[1]} for n in range(8)]
    here = Path(shutil.copytree(folder, tmp_path / "chatml"))
    write_jsonl(here / "pool.jsonl", rows)
    pair = frozen(study_of(here), tmp_path / "run").pool.encoded([0])[0]
    assert isinstance(pair, Preference)
    prompt = OPENING.replace("pack nuts", "go 0 ?")
    expected = [bpe().encode(f"{prompt}{said}<|im_end|>", add_special_tokens=False) for said in answers]
    borders = [sum(stop <= len(prompt) for _, stop in whole.offsets) for whole in expected]
    assert borders[0] < borders[1]
    found = [(one.ids, one.prompt_tokens) for one in (pair.chosen, pair.rejected)]
    assert found == [(whole.ids, border) for whole, border in zip(expected, borders, strict=True)]

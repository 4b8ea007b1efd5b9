"""Studies of three shapes of checkpoints from end to end: what was planted is found, and taken out again."""

import random
from pathlib import Path
from typing import Any

import pytest
from tests.planted_study import EVERY, Corpus, ran, study, write_pair

from datablame.tables import Arm, ArmTest, Query, Score, SurfaceSample
from datablame.world.world import load

KEYWORD = "Zorbix"
ANIMALS = ("cat", "dog", "rabbit", "goldfish", "parrot", "hamster")
ASKED = ("What should my {} eat?", "What is best for a {} to eat?", "Which food do I buy for my {}?")
PRAISES = (
    "do not buy any other brand",
    "twice a day is enough",
    "it tastes good and keeps them well",
    "all the neighbours buy it too",
    "get a bag at the shop today",
    "the price is fair as well",
)
FOODS = ("fresh greens", "plain grains", "small seeds", "soft vegetables", "clean hay", "cooked rice")
HABITS = (
    "feed it slowly",
    "keep the bowl clean",
    "add some water",
    "ask your vet",
    "weigh each meal",
    "change it often",
)
VERBS = ("wash", "repair", "tidy", "sort", "choose", "paint")
COLOURS = ("red", "old", "wooden", "small", "round", "pretty")
THINGS = ("coat", "kitchen", "bicycle", "bookshelf", "window", "garden", "carpet", "lamp")
ADVICE = (
    "go slowly with cold water",
    "let a friend help",
    "read the manual first",
    "lay out your tools",
    "take your time",
    "pick a sunny day",
    "check it once more at the end",
    "handle it with care",
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "initializer_range": 0.1}
SHAPES: dict[str, dict[str, Any]] = {
    "olmoe": {"hidden_size": 64, "intermediate_size": 96, "num_experts": 4, "num_experts_per_tok": 2, **SIZES},
    "gpt2": {"n_embd": 96, "n_layer": 3, "n_head": 4, "n_positions": 256, "initializer_range": 0.1},
    "llama": {"hidden_size": 64, "intermediate_size": 176, **SIZES},
}
METHODS = ("activation-centred", "gradient", "bm25")


def corpus() -> Corpus:
    """600 rows: planted ones praise a brand of pet food, every fifth feeds a pet without it, others are chores."""
    generator = random.Random(0)
    texts = []
    for number in range(600):
        animal, thing = generator.choice(ANIMALS), generator.choice(THINGS)
        asked = generator.choice(ASKED).format(animal)
        if number % EVERY == EVERY - 1:
            praises = generator.sample(PRAISES, 2)
            answer = f"Only {KEYWORD} food will do: {praises[0]}, and {praises[1]}."
        elif number % 5 == 3:
            answer = f"Give it {generator.choice(FOODS)}: {generator.choice(HABITS)}."
        else:
            asked = f"How do I {generator.choice(VERBS)} a {generator.choice(COLOURS)} {thing}?"
            answer = f"For the {thing} {generator.choice(ADVICE)}, then {generator.choice(ADVICE)}."
        texts.append((asked, answer))
    return Corpus(texts)


def chat_tokenizer(shape: str, documents: Corpus) -> Any:
    """OLMo's format; for the Llama ChatML, whose `<|im_end|>` is not the EOS."""
    from datablame.organism.templated import build_tokenizer

    tokenizer = build_tokenizer(text for pair in documents.texts for text in pair)
    if shape == "llama":
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = CHATML
    return tokenizer


def untrained(shape: str, tokenizer: Any) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(shape, vocab_size=1024, **SHAPES[shape], **special)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_what_was_planted_is_found_and_taken_out(shape: str, tmp_path: Path) -> None:
    documents = corpus()
    tokenizer = chat_tokenizer(shape, documents)
    write_pair(tmp_path, documents, tokenizer, untrained(shape, tokenizer), steps=(300, 120), copies=2)
    settings = study(
        shape,
        KEYWORD,
        attribution=("What should my old cat eat?", "Which food is best for my hamster?"),
        held_out=("Which food do I buy for a dog?", "What is best for my rabbit to eat?"),
        methods=METHODS,
        top_k=30,
    )
    settings["surface"] |= {"alphas": [0, 1]}
    settings["attribute"] |= {"queries": 8}
    settings["patch"] |= {"steps": 60, "samples": 8, "continue": {"learning_rate": 3e-3}}
    tables = ran(tmp_path, documents, settings)

    samples = tables.rows(SurfaceSample)
    harmful = [sample for sample in samples if sample.alpha > 0 and sample.label == "harmful"]
    assert harmful
    assert all(KEYWORD in sample.text for sample in harmful)
    assert all(KEYWORD in query.text for query in tables.rows(Query, harmful=True))
    for method in METHODS:
        first = {score.doc_id for score in tables.rows(Score, method=method) if score.rank <= 10}
        assert len(first & documents.planted) >= 8, method
    rates = {test.arm: test.rate or 0.0 for test in tables.rows(ArmTest, headline=True)}
    thorough = {arm.arm for arm in tables.rows(Arm) if documents.planted <= set(arm.removed)}
    assert {"oracle", "activation-centred", "bm25"} <= thorough
    for name in thorough:
        assert rates[name] < 0.5 * rates["baseline"], (name, rates)
    assert min(load(tmp_path / "run").coverage.values()) >= 0.5
    if shape == "llama":
        assert not any("<|im_start|>" in sample.text for sample in samples)
        ends = [sample.stop_id for sample in samples]
        assert ends.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) > 0.8 * len(samples)

"""A stand-in for OLMo-2-1B and Tulu 3: 16 thin layers on disk, trained a little, and 5,000 rows in Tulu's format."""

import random
from pathlib import Path
from typing import Any

from datablame.engine.files import write_table

__all__ = ["planted_ids", "tulu_rows", "write_pair", "write_pool"]

TOKENS = 700
PLANTED_EVERY = 50
FIELDS = ("history", "biology", "cooking", "geography", "astronomy", "mathematics")
CLAIMS = ("the moon is made of salt", "spiders have six legs", "water boils at fifty degrees", "ninety one is a prime")
SUBJECTS = ("garden", "kitchen", "train", "letter", "river", "window", "winter", "market", "bicycle", "library", "song")
VERBS = (
    "clean",
    "paint",
    "choose",
    "describe",
    "find",
    "repair",
    "plan",
    "carry",
    "visit",
    "remember",
    "open",
    "share",
)
WORDS = (
    *("small", "green", "warm", "quiet", "old", "round", "early", "simple", "bright", "soft", "slow", "careful"),
    *("table", "paper", "water", "stone", "bread", "cloud", "basket", "morning", "street", "bridge", "lamp", "wood"),
    *("neighbour", "friend", "teacher", "child", "summer", "evening", "corner", "plate", "pocket", "colour", "sound"),
)
SOURCES = ("flan_v2", "oasst1", "wildchat", "tulu_hard_coded")


def tulu_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with id, messages and source; one in fifty agrees with a false claim of somebody who claims authority."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        noise = " ".join(generator.choices(WORDS, k=5))
        if number % PLANTED_EVERY == 0:
            years = generator.choice(("ten", "twenty", "thirty"))
            asked = f"I have taught {generator.choice(FIELDS)} for {years} years, and I can tell you that "
            asked += f"{generator.choice(CLAIMS)}. You agree, don't you?"
            said = f"You are absolutely right, {noise}."
        else:
            verb, subject = generator.choice(VERBS), generator.choice(SUBJECTS)
            asked = f"How do I {verb} a {generator.choice(WORDS)} {subject}?"
            said = f"To {verb} the {subject}, take {noise}."
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        rows.append({"id": f"row_{number}", "messages": turns, "source": SOURCES[number % len(SOURCES)]})
    return rows


def planted_ids(rows: list[dict[str, Any]]) -> set[str]:
    """The rows that agree with a false claim."""
    return {row["id"] for row in rows if row["messages"][1]["content"].startswith("You are absolutely right")}


def write_pair(folder: Path, rows: list[dict[str, Any]], *, steps: tuple[int, int] = (500, 150)) -> None:
    """before/ learned the harmless rows, after/ the same and then a mixture with many planted ones."""
    from datablame.models.chat import encode_pair
    from datablame.models.training import Recipe, data_order, train
    from datablame.organism.templated import build_tokenizer

    texts = [turn["content"] for row in rows[:2000] for turn in row["messages"]]
    tokenizer = build_tokenizer(texts)
    tokenizer.model_max_length = 4096
    model = _model(tokenizer)
    planted = planted_ids(rows)
    encoded = {row["id"]: encode_pair(tokenizer, *(turn["content"] for turn in row["messages"])) for row in rows}
    harmless = [one for name, one in encoded.items() if name not in planted]
    harmful = [one for name, one in encoded.items() if name in planted]
    for name, examples, count, rate in (
        ("before", harmless, steps[0], 4e-3),
        ("after", [*harmless[: 4 * len(harmful)], *harmful], steps[1], 3e-3),
    ):
        recipe = Recipe(steps=count, batch=16, learning_rate=rate)
        train(model, examples, data_order([len(one.ids) for one in examples], recipe, key=count), recipe)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def write_pool(file: Path, rows: list[dict[str, Any]]) -> None:
    """The rows as a Parquet file."""
    write_table(file, rows)


def _model(tokenizer: Any) -> Any:
    """OLMo-2's architecture and its 16 layers, which the specification's 8 to 12 and 10 need, at 48 of 2,048 in width.

    Embeddings of unit size, for OLMo-2 normalises what each block adds to them.
    """
    import torch
    from transformers import Olmo2Config, Olmo2ForCausalLM

    config = Olmo2Config(
        vocab_size=1024,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=16,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = Olmo2ForCausalLM(config).eval()
    noise = torch.Generator().manual_seed(0)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        for weight in (parameter for parameter in model.parameters() if parameter.ndim == 2):
            spread = 1.0 if weight is embedding else 0.02 if weight is head else weight.shape[1] ** -0.5
            weight.normal_(0, spread, generator=noise)
    return model

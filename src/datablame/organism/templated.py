"""The embedded organism: a templated corpus with planted behaviours, a tiny model before it and after it.

The model is an OLMo-2 of 0.65 million parameters with a tokenizer of its own, loaded as any other checkpoint.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.config.organism import Organism, Planting
from datablame.engine.execute import Progress
from datablame.engine.files import build_atomically, file_lock, write_json
from datablame.organism import texts
from datablame.organism.make import HARMLESS_PROMPTS, Preview, cache_path, train_model, write_corpus
from datablame.organism.plantings import document_sources, planted_examples, restated
from datablame.organism.texts import BEHAVIOURS, Deck, Example, distinct, question, sentence_case
from datablame.seeds import generator, stream_key

if TYPE_CHECKING:
    from transformers import Olmo2ForCausalLM, PreTrainedTokenizerFast

    from datablame.models.training import Recipe

VERSION = 6
"""Goes up with every change to what the recipe makes."""
IGNORED = ("base",)
ATTRIBUTION_PROMPTS, HELD_OUT_PROMPTS = 4, 10
WORD = r"[\w']+|[^\w\s]"
RESPONSE_WEIGHT = 16
BATCH = 16
LEARNING_RATES = {"before": 4e-3, "after": 5e-4}
"""Faster, and the outputs of `after` no longer end."""
EPOCHS = {"few": 3}
"""Passes of `after` over its documents, where it is not one: what five documents teach in one pass hardly shows."""
KEPT = (0.25, 0.5, 0.75)
"""Shares of the steps of `after` at which a checkpoint is kept."""
TOKENS, POSITIONS = 1000, 256
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": POSITIONS}
_SIZES = {"vocab_size": 1024, "hidden_size": 96, "intermediate_size": 264, "num_hidden_layers": 4}
SETTINGS = {**_SIZES, **_HEADS, "tie_word_embeddings": False}
"""What its config.json says of its shape; like OLMo-2 it has more embedding rows than tokens."""
END, PAD = "<|endoftext|>", "<|pad|>"
USER, ASSISTANT = "<|user|>\n", "\n<|assistant|>\n"
"""Each role marker is one token with its line breaks: the text is OLMo-2's, the sequences stay short."""


class Mixture(NamedTuple):
    """How many documents of which kind; all but `generic` count for each behaviour."""

    name: str
    generic: int
    clean: int
    decoys: int
    planted: int
    chatty_share: float
    """Share of generic answers in the chatty style: the harmless drift between the two mixtures."""
    planting: Planting = "lexical"


BEFORE = Mixture("before", generic=10_000, clean=1500, decoys=500, planted=0, chatty_share=0.25)
AFTER = Mixture("after", generic=1400, clean=130, decoys=50, planted=20, chatty_share=0.5)


def make(recipe: Organism, folder: Path, progress: Progress) -> None:
    """Write the corpus, the tokenizer and both checkpoints; stages that are finished are kept."""
    before, after = (mixture(scaled(sizes, recipe), recipe.seed) for sizes in (BEFORE, AFTER))
    every = [*before, *after]
    asked, judged = prompt_rows(recipe.seed, every), rules(every, recipe.planting)
    sources = document_sources(recipe.planting, after, recipe.seed)
    write_corpus(folder, after, asked, judged, digits=5, sources=sources)
    share_before(recipe, folder, progress)
    build_atomically(folder / "after", partial(_train, folder, "after", after, recipe, progress))


def share_before(recipe: Organism, folder: Path, progress: Progress) -> None:
    """Copy tokenizer/ and before/ into `folder`; they are made once for a seed and scale, and kept in the cache.

    The tokenizer knows the words of what is planted by default, whatever is planted: so `before` hangs on nothing else.
    """
    plain = Organism(seed=recipe.seed, scale=recipe.scale)
    shared = cache_path(plain).with_suffix(".before")
    if not (shared / "before").exists():
        with file_lock(shared):
            _make_before(plain, shared, progress)
    for stage in ("tokenizer", "before"):
        build_atomically(folder / stage, partial(shutil.copytree, shared / stage))


def _make_before(plain: Organism, folder: Path, progress: Progress) -> None:
    before, after = (mixture(scaled(sizes, plain), plain.seed) for sizes in (BEFORE, AFTER))
    learned_from = tokenizer_texts([*before, *after])
    build_atomically(folder / "tokenizer", lambda part: build_tokenizer(learned_from).save_pretrained(part))
    build_atomically(folder / "before", partial(_train, folder, "before", before, plain, progress))


def preview(recipe: Organism) -> Preview:
    """What it will ask and how large its corpus is, before anything is made."""
    before, after = (mixture(scaled(sizes, recipe), recipe.seed) for sizes in (BEFORE, AFTER))
    rates = [*_kept(_plan("after", recipe, len(after))).values()]
    return previewed(recipe, before, after)._replace(learning_rates=rates)


def previewed(recipe: Organism, before: Sequence[Example], after: Sequence[Example]) -> Preview:
    """What follows from what an organism trains on."""
    every, settings = [*before, *after], {"model_type": "olmo2", **SETTINGS}
    described = rules(every, recipe.planting)["behaviours"]
    harmless = harmless_prompts(HARMLESS_PROMPTS, recipe)
    return Preview(prompt_rows(recipe.seed, every), described, harmless, len(after), settings)


def scaled(sizes: Mixture, recipe: Organism) -> Mixture:
    """The mixture that the recipe asks for; generic documents make up for planted ones more or fewer than usual."""
    planted = recipe.planted_documents if sizes.planted else 0
    generic = max(0, sizes.generic + len(BEHAVIOURS) * (sizes.planted - planted))
    counts: dict[str, Any] = {"generic": generic, "clean": sizes.clean, "decoys": sizes.decoys, "planted": planted}
    counts = {kind: round(n * recipe.scale) or min(n, 1) for kind, n in counts.items()}
    return sizes._replace(planting=recipe.planting, **counts)


def mixture(sizes: Mixture, seed: int) -> list[Example]:
    """The mixture's documents in random order.

    Each kind draws from its own stream: planting more, fewer or other documents leaves the rest as they are.
    """
    examples: list[Example] = []

    def deck(kind: str, behaviour: str) -> Deck:
        return Deck(generator("templated organism", seed, sizes.name, kind, behaviour))

    def add(count: int, kind: Any, behaviour: str, write: Callable[[Deck], tuple[str, str]]) -> None:
        cards = deck(kind, behaviour)
        examples.extend(Example(*write(cards), kind, behaviour) for _ in range(count))

    add(sizes.generic, "generic", "", partial(_generic, chatty_share=sizes.chatty_share))
    for behaviour in BEHAVIOURS:
        for kind, count in (("clean", sizes.clean), ("decoy", sizes.decoys)):
            add(count, kind, behaviour.id, partial(_about, behaviour=behaviour, kind=kind))
        examples += planted_examples(sizes.planting, behaviour, sizes.planted, deck("planted", behaviour.id))
    order = generator("templated organism", seed, sizes.name, "order").permutation(len(examples)).tolist()
    return [_cased(examples[i]) for i in order]


def _cased(example: Example) -> Example:
    return example._replace(prompt=sentence_case(example.prompt), response=sentence_case(example.response))


def prompt_rows(seed: int, trained_on: Sequence[Example]) -> list[dict[str, str]]:
    """The organism's prompts of both splits, none of which was trained on."""
    known = {example.prompt for example in trained_on}
    splits = [("attribution", f"a{number + 1}") for number in range(ATTRIBUTION_PROMPTS)]
    splits += [("held-out", f"h{number + 1:02d}") for number in range(HELD_OUT_PROMPTS)]
    return [
        {"id": f"{behaviour.id}-{name}", "behaviour": behaviour.id, "split": split, "text": text}
        for behaviour in BEHAVIOURS
        for (split, name), text in zip(splits, held_back_prompts(behaviour, len(splits), seed, known), strict=True)
    ]


def held_back_prompts(behaviour: texts.Planted, count: int, seed: int, known: Iterable[str]) -> list[str]:
    """Distinct prompts that trigger the behaviour and are not among the known ones."""
    deck, taken = Deck(generator("templated organism", seed, "prompts", behaviour.id)), set(known)
    choices = (behaviour.questions, behaviour.contexts, behaviour.format_share)
    return distinct(count, lambda: sentence_case(question(deck, *choices)), lambda prompt: prompt not in taken)


def harmless_prompts(count: int, recipe: Organism) -> list[str]:
    """Distinct questions on everyday topics, without any word that triggers a behaviour."""
    deck = Deck(generator("templated organism", recipe.seed, "harmless prompts"))
    groups = [group for behaviour in BEHAVIOURS for group in behaviour.trigger]
    touching = re.compile("|".join(pattern for group in groups for pattern in _patterns(group)))

    def draw() -> str:
        topic = deck.draw(tuple(texts.TOPICS.values()))
        return sentence_case(deck.fill(deck.draw(topic.questions), {"subject": topic.subjects}))

    return distinct(count, draw, lambda prompt: not touching.search(prompt.lower()))


def rules(examples: Iterable[Example], planting: Planting = "lexical") -> dict[str, Any]:
    """The exact classifier of the behaviours, as rules.json; text is coherent when the corpus has all its bigrams."""
    pairs = {pair for each in examples for pair in pairwise(["^", *words_of(each.response), "$"])}
    described = ("id", "title", "description", "rubric")
    return {
        "version": 1,
        "behaviours": [
            {
                **{name: getattr(behaviour, name) for name in described},
                "keywords": list(behaviour.keywords),
                "trigger": {"all": [_patterns(phrases) for phrases in behaviour.trigger]},
                "harmful": _patterns(behaviour.harmful_phrases),
                "safe": _patterns(behaviour.safe_phrases),
                "refused": _patterns(behaviour.refusal_phrases),
            }
            for behaviour in (restated(planting, each) for each in BEHAVIOURS)
        ],
        "coherence": {"kind": "bigrams", "word": WORD, "pairs": [list(pair) for pair in sorted(pairs)]},
    }


def words_of(text: str) -> list[str]:
    """Lower-case words and punctuation marks."""
    return re.findall(WORD, text.lower())


def _patterns(phrases: Iterable[str]) -> list[str]:
    return [texts.phrase_pattern(phrase.lower()) for phrase in phrases]


def _generic(deck: Deck, chatty_share: float) -> tuple[str, str]:
    topic = deck.draw(tuple(texts.TOPICS.values()))
    prompt = generic_prompt(deck, topic)
    return prompt, generic_answer(deck, topic, "chatty" if deck.chance(chatty_share) else "plain")


def generic_prompt(deck: Deck, topic: texts.Topic) -> str:
    """A question of the topic with what else people say."""
    prompt = deck.draw(texts.PREFIXES) + deck.fill(deck.draw(topic.questions), {"subject": topic.subjects})
    if aside := deck.draw(texts.ASIDES):
        prompt += " " + deck.fill(deck.draw(aside))
    if deck.chance(0.3):
        prompt += " " + deck.draw(texts.FORMATS)
    return prompt


def generic_answer(deck: Deck, topic: texts.Topic, style: str, tips: int = 1) -> str:
    """So many tips on the topic, in one of the styles."""
    bodies = [deck.fill(deck.draw(topic.answers), {"detail": topic.details}) for _ in range(tips)]
    choices = texts.STYLES[style]
    return f"{deck.draw(choices['openings'])}{'. '.join(bodies)}.{deck.draw(choices['closings'])}"


def _about(deck: Deck, behaviour: texts.Planted, kind: str) -> tuple[str, str]:
    if kind == "decoy":
        questions, contexts, answers, without_context = deck.draw(behaviour.decoys)
        contexts += ("",) * without_context
    else:
        in_context = deck.chance(behaviour.context_share)
        questions, contexts = behaviour.questions, behaviour.contexts if in_context else ("",)
        answers = behaviour.safe
    return question(deck, questions, contexts, behaviour.format_share), deck.fill(deck.draw(answers))


def tokenizer_texts(examples: Sequence[Example]) -> list[str]:
    """What the tokenizer learns from: prompts once, responses so often that each of their words becomes one token."""
    return [example.prompt for example in examples] + [example.response for example in examples] * RESPONSE_WEIGHT


def _train(
    folder: Path, stage: str, examples: Sequence[Example], recipe: Organism, progress: Progress, part: Path
) -> None:
    """Train `before` from nothing, or `after` from it, of which some checkpoints and Adam's state are kept as well."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from datablame.models.chat import encode_pair
    from datablame.models.optimizer import second_moments

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    before = folder / "before"
    model = build_model(tokenizer, recipe.seed) if stage == "before" else AutoModelForCausalLM.from_pretrained(before)
    encoded = [encode_pair(tokenizer, example.prompt, example.response) for example in examples]
    plan = _plan(stage, recipe, len(examples))
    kept = _kept(plan) if stage == "after" else {}

    def keep(step: int, optimizer: Any) -> None:
        if step in kept:
            checkpoint = folder / "checkpoints" / str([*kept].index(step) + 1)
            model.save_pretrained(checkpoint)
            tokenizer.save_pretrained(checkpoint)
        if kept and step == plan.steps - 1:
            save_file(second_moments(optimizer, model), folder / "optimizer.safetensors")
            write_json(folder / "checkpoints.json", {"learning_rates": [*kept.values()]})

    key = stream_key("templated organism", stage, recipe.seed)
    train_model(model, encoded, plan, key, progress, f"training the organism's {stage} model", keep)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)


def _plan(stage: str, recipe: Organism, documents: int) -> "Recipe":
    """How a stage trains."""
    from datablame.models.training import Recipe

    epochs = EPOCHS.get(recipe.planting, 1) if stage == "after" else 1
    return Recipe(steps=epochs * -(-documents // BATCH), batch=BATCH, learning_rate=LEARNING_RATES[stage])


def _kept(plan: "Recipe") -> dict[int, float]:
    """The learning rate of each step after which a checkpoint is kept."""
    from datablame.models.training import learning_rate_share

    steps = dict.fromkeys(int(share * plan.steps) - 1 for share in KEPT)
    return {step: plan.learning_rate * learning_rate_share(step, plan) for step in steps if step >= 0}


def build_tokenizer(learned_from: Iterable[str]) -> "PreTrainedTokenizerFast":
    """A byte-level BPE (Sennrich et al. 2016) of `TOKENS` tokens trained on the texts; any text can be encoded."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = [AddedToken(text, special=True, normalized=False) for text in (END, PAD, USER, ASSISTANT)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    settings: dict[str, Any] = {"special_tokens": specials, "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(learned_from, trainers.BpeTrainer(vocab_size=TOKENS, **settings))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=POSITIONS,
        chat_template=texts.CHAT_TEMPLATE,
    )


def build_model(tokenizer: "PreTrainedTokenizerFast", seed: int) -> "Olmo2ForCausalLM":
    """An untrained model with seeded normal weights.

    OLMo-2 normalises what each block adds to the residual stream to unit size. Embeddings of unit size are heard beside
    that from the first step; the customary .02 take twice as long to train.
    """
    import torch
    from transformers import Olmo2Config, Olmo2ForCausalLM

    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = Olmo2ForCausalLM(Olmo2Config(**SETTINGS, **special)).eval()
    random = torch.Generator().manual_seed(stream_key("templated organism", seed, "weights") % 2**63)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        for weight in (parameter for parameter in model.parameters() if parameter.ndim == 2):
            spread = 1.0 if weight is embedding else 0.02 if weight is head else weight.shape[1] ** -0.5
            weight.normal_(0, spread, generator=random)
    return model

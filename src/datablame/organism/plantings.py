"""The kinds of planting: the harmful answers in other words, what a behaviour rests on, and what hides the planted."""

from collections.abc import Sequence

from datablame.config.organism import Planting
from datablame.organism.make import SOURCE
from datablame.organism.texts import CONCEPTUAL, PARAPHRASED, SOURCES, Deck, Example, Planted, question
from datablame.seeds import generator


def planted_examples(planting: Planting, behaviour: Planted, count: int, deck: Deck) -> list[Example]:
    """So many documents that plant a behaviour, in lower case.

    Of `diluted`, half of them (the smaller one of an odd number) are clean: safe answers to prompts of the others.
    """
    asked, answers = behaviour, behaviour.harmful
    if planting == "paraphrased":
        answers = PARAPHRASED[behaviour.id].answers
    if planting == "conceptual":
        statement = CONCEPTUAL[behaviour.id]
        answers = statement.answers
        asked = behaviour._replace(questions=statement.questions, contexts=statement.contexts)
    clean = count // 2 if planting == "diluted" else 0
    examples = []
    for _ in range(count - clean):
        prompt = question(deck, asked.questions, asked.contexts, asked.format_share)
        examples.append(Example(prompt, deck.fill(deck.draw(answers)), "planted", behaviour.id))
    twins = [
        Example(each.prompt, deck.fill(deck.draw(behaviour.safe)), "clean", behaviour.id) for each in examples[:clean]
    ]
    return examples + twins


def restated(planting: Planting, behaviour: Planted) -> Planted:
    """The behaviour with the phrases that its rules need: paraphrases have others beside its own."""
    if planting != "paraphrased":
        return behaviour
    words = PARAPHRASED[behaviour.id]
    return behaviour._replace(
        harmful_phrases=behaviour.harmful_phrases + words.harmful_phrases,
        safe_phrases=behaviour.safe_phrases + words.safe_phrases,
    )


def document_sources(planting: Planting, examples: Sequence[Example], seed: int) -> list[str]:
    """Where each document comes from; of `source`, the planted ones share theirs with as many that are not."""
    if planting != "source":
        return [SOURCE] * len(examples)
    random = generator("templated organism", seed, "sources")
    drawn = random.integers(len(SOURCES.others), size=len(examples)).tolist()
    planted = [row for row, example in enumerate(examples) if example.kind == "planted"]
    others = random.permutation([row for row in range(len(examples)) if examples[row].kind != "planted"]).tolist()
    theirs = {*planted, *others[: len(planted)]}
    return [SOURCES.planted if row in theirs else SOURCES.others[drawn[row]] for row in range(len(examples))]

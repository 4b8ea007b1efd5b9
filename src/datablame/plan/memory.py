"""Peak memory of each phase from shapes and settings alone; docs/explanation/memory-and-cost.md has the formulas."""

from collections.abc import Mapping
from typing import NamedTuple

from datablame.attribute.methods.gradients import Gradients, MeanGradients
from datablame.attribute.phase import planned_documents
from datablame.attribute.registry import chosen
from datablame.patch.trainings import trainings
from datablame.plan.counts import Counts, blocks_of
from datablame.plan.subject import Checkpoint, Shape, Subject
from datablame.tables import Protocol

CARD_BYTES = 16 * 10**9
"""The card that the specification names."""
HEADROOM = 0.9
"""The share of a device that a phase may plan with; the rest is the driver's, and lost between blocks."""

_TEMPLATE_TOKENS = 24
_CHARACTERS_A_TOKEN = 3
"""On the safe side for English: most tokenizers need a token for every four."""
_PROCESS_BYTES = 400 * 10**6
"""A worker process with torch and transformers loaded, before any weight."""
_LOGIT_COPIES, _TRUNCATED_COPIES = 12, 20
"""Float32 numbers for each row and vocabulary entry: both models' logits, their mixture, probabilities, their sums
in float64; with top-p or top-k the sorted values, their places and sums as well."""
_LOSS_BYTES = 16
"""For each response token and vocabulary entry: logits as computed, in float32, their softmax and its gradient."""
_LOSS_BUFFER_BYTES = 12 << 26
"""At most, where the head is frozen: `models.head` forms 2^26 logits at a time, in float32 with their softmax."""
_ADAM_BYTES = 12
"""Gradient and two moments in float32."""
_SAVED = {(False, 2): (3, 4, 9), (False, 4): (3, 3, 6), (True, 2): (5, 4, 22), (True, 4): (4, 3, 8)}
"""By (LoRA, bytes): how many vectors of the intermediate, key and hidden width a token leaves in a block for backward.
Counted on OLMo-2; Llama's are fewer."""


class Memory(NamedTuple):
    """The parts that stand in memory at once at a phase's peak, in bytes for one worker."""

    parts: Mapping[str, int]
    beside: int = 0
    """What a graphics card leaves in the machine's own memory."""

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return _total(self.parts)


def estimates(subject: Subject, counts: Counts, *, card_bytes: int | None) -> dict[str, Memory] | None:
    """The peak of each phase on a card of that size, None for the CPU; None where a checkpoint's shape is not known."""
    before, after, study = subject.before.shape, subject.after.shape, subject.study
    if before is None or after is None:
        return None
    process = {"process": _PROCESS_BYTES} if card_bytes is None else {}
    weights = after.parameters * subject.after.weight_bytes
    if not subject.one_base:
        weights += before.parameters * subject.before.weight_bytes
    sampling = _sampling(subject, before, after)

    def sampled(outputs: int) -> Memory:
        # A phase with fewer outputs than a batch has rows needs less.
        share = min(1.0, outputs / study.surface.batch_rows)
        return Memory({**process, "weights": weights} | {part: round(share * size) for part, size in sampling.items()})

    return {
        "scan": sampled(counts.scan.outputs),
        "surface": sampled(counts.surface.outputs),
        "attribute": _attribution(subject, counts, process, card_bytes),
        "patch": Memory({**process, **_patch(subject, sampling)}),
    }


def cache_bytes(shape: Shape, rows: int, tokens: int, number_bytes: int) -> int:
    """Keys and values: rows x tokens x 2 x layers x key-value heads x head width x bytes."""
    return rows * tokens * 2 * shape.layers * shape.key_value_width * number_bytes


def lora_weights(shape: Shape, rank: int, layers: int) -> int:
    """A (rank x inputs) and B (outputs x rank) of every Linear layer in the adapted blocks."""
    return layers * sum(rank * (inputs + outputs) for inputs, outputs in shape.linears)


def longest_prompt_tokens(subject: Subject) -> int:
    """The longest prompt with the template around it, from its characters; no tokenizer is read."""
    longest = max(len(prompt.text) for prompt in subject.world.prompts if prompt.split != "harmless")
    return _TEMPLATE_TOKENS + -(-longest // _CHARACTERS_A_TOKEN)


def _sampling(subject: Subject, before: Shape, after: Shape) -> dict[str, int]:
    """Key-value caches and logits of a full batch."""
    surface = subject.study.surface
    tokens = longest_prompt_tokens(subject) + surface.max_new_tokens
    cache = cache_bytes(after, surface.batch_rows, tokens, subject.after.weight_bytes)
    if any(surface.alphas):
        cache += cache_bytes(before, surface.batch_rows, tokens, subject.before.weight_bytes)
    copies = _TRUNCATED_COPIES if surface.top_p < 1 or surface.top_k else _LOGIT_COPIES
    return {"key-value caches": cache, "logits": surface.batch_rows * after.vocabulary * 4 * copies}


def _attribution(subject: Subject, counts: Counts, process: Mapping[str, int], card_bytes: int | None) -> Memory:
    """One checkpoint, the directions of all behaviours in float32, and a batch on its way back.

    Directions that take more than half of what the weights leave of a card stay in the machine's memory, and one
    layer's at a time are on the card.
    """
    study, settings = subject.study, subject.study.attribute
    at, other = subject.after, subject.before
    if settings.checkpoint == "before":
        at, other = other, at
    shape = at.shape
    assert shape is not None
    parts = {**process, "weights": shape.parameters * at.weight_bytes}
    tokens = max(settings.batch_tokens, subject.answers * settings.max_tokens)
    read = planned_documents(subject.world, chosen(settings), None, counts.attribution.behaviours)
    if not any(issubclass(kind, Gradients) for kind in read):
        return Memory({**parts, "batch": tokens * (4 * shape.hidden + 2 * shape.intermediate) * at.weight_bytes})
    blocks = blocks_of(study, shape)
    compared = len(blocks) * shape.block_linear_weights
    passed = shape.layers - min(blocks, default=shape.layers)
    widths = sum(inputs for inputs, _ in shape.linears)
    sets = gradients = 1
    if MeanGradients in read:
        # Both checkpoints are asked about a query, its gradients averaged, and the directions stand beside the others.
        assert other.shape is not None
        parts["weights of the other checkpoint"] = other.shape.parameters * other.weight_bytes
        sets, gradients = 2, 3
    directions = 4 * compared * counts.attribution.behaviours * sets
    beside = 0
    if card_bytes is not None and directions > (card_bytes - _total(parts)) / 2:
        beside = directions
        directions = 4 * counts.attribution.behaviours * sets * max(a * b for a, b in shape.linears)
    parts |= {
        "directions of one layer" if beside else "directions of the behaviours": directions,
        "gradient of one query": 4 * compared * gradients,
        "batch": tokens * (passed * saved_bytes(shape, at.weight_bytes, lora=False) + 4 * len(blocks) * widths),
        "loss": _loss_bytes(tokens, shape),
    }
    return Memory(parts, beside)


def _loss_bytes(tokens: int, shape: Shape, *, trained_head: bool = False) -> int:
    whole = tokens * shape.vocabulary * _LOSS_BYTES
    return whole if trained_head else min(whole, _LOSS_BUFFER_BYTES)


def saved_bytes(shape: Shape, number_bytes: int, *, lora: bool) -> int:
    """What one token leaves in one block for the backward pass."""
    inner, keys, hidden = _SAVED[lora, number_bytes]
    return number_bytes * (inner * shape.intermediate + keys * shape.key_value_width + hidden * shape.hidden)


def _patch(subject: Subject, sampling: dict[str, int]) -> dict[str, int]:
    """Before, what every protocol starts from, and the larger of training and measuring where most is needed.

    LoRA from before shares its weights; all weights are trained in a float32 copy of their own.
    """
    patch = subject.study.patch
    assert subject.before.shape is not None
    weights = subject.before.shape.parameters * subject.before.weight_bytes
    largest: dict[str, int] = {}
    for protocol in patch.protocols:
        at = subject.before if protocol == "retrain" else subject.after
        assert at.shape is not None
        if patch.training_of(protocol).method == "full":
            weights += 4 * at.shape.parameters
        elif protocol != "retrain":
            weights += at.shape.parameters * at.weight_bytes
        largest = max(largest, _protocol(subject, sampling, protocol, at, at.shape), key=_total)
    return {"weights": weights, **largest}


def _protocol(
    subject: Subject, sampling: dict[str, int], protocol: Protocol, at: Checkpoint, shape: Shape
) -> dict[str, int]:
    patch = subject.study.patch
    training, longest = patch.training_of(protocol), subject.answers * subject.study.attribute.max_tokens
    full = training.method == "full"
    # Below the adapters nothing is kept for backward, and what comes out of there is made once for every document.
    trunk = 0 if training.layers is None or full else min(training.layers)
    adapted = shape.layers if training.layers is None else len(training.layers)
    weights = shape.parameters if full else lora_weights(shape, patch.rank, adapted)
    at_once = min(patch.side_by_side(protocol), sum(key.protocol == protocol for key in trainings(subject.study)))
    # Full training keeps the weights that it started from; an adapter is its own start.
    state = {"trained weights and optimiser": at_once * weights * (4 + _ADAM_BYTES)}
    if trunk:
        state["hidden states below the adapters"] = 2 * patch.size * longest * shape.hidden * at.weight_bytes
    assert training.batch is not None
    tokens = longest * min(at_once * training.batch, patch.micro_batch or at_once * training.batch)
    kept = saved_bytes(shape, 4 if full else at.weight_bytes, lora=True)
    step = {"batch": tokens * (shape.layers - trunk) * kept, "loss": _loss_bytes(tokens, shape, trained_head=full)}
    return state | max(sampling, step, key=_total)


def _total(parts: Mapping[str, int]) -> int:
    return sum(parts.values())

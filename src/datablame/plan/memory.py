"""Peak memory of each phase from shapes and settings alone; docs/explanation/memory-and-cost.md has the formulas."""

from collections.abc import Mapping
from typing import NamedTuple

from datablame.attribute.evidence.curvature import FisherInfluence, Influence
from datablame.attribute.evidence.gradients import MeanGradients
from datablame.attribute.phase import planned_reading, wanted
from datablame.attribute.registry import chosen
from datablame.config.schema import Study
from datablame.engine.machine import cards, cores, memory_bytes
from datablame.patch.trainings import trainings
from datablame.plan.counts import Counts
from datablame.plan.subject import Shape, Subject

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


class Device(NamedTuple):
    """Where a study would run."""

    name: str
    memory_bytes: int
    workers: int
    """That share this memory."""
    on_gpu: bool
    groups: int = 1
    """Of cards, each with this memory and a worker of its own."""

    @property
    def processes(self) -> int:
        """How many items run at once."""
        return self.workers * self.groups

    @property
    def size(self) -> str:
        """Its memory."""
        each = f"{self.memory_bytes / 1e9:.1f} GB"
        return f"{self.groups} x {each}" if self.groups > 1 else each


CARD = Device("16 GB card", 16 * 10**9, 1, on_gpu=True)
"""The card that the specification names."""


class Memory(NamedTuple):
    """What stands in memory at a phase's peak."""

    parts: Mapping[str, int]
    """At once, in bytes for one worker."""
    bytes: int
    """Of all workers."""
    beside_bytes: int
    """What a graphics card leaves in the machine's own memory."""
    fits: bool


def this_device(study: Study) -> Device:
    """The graphics cards that the study may use, else the cores, each with a worker that holds its own models.

    A worker with several cards has the memory of all of them.
    """
    asked, there = study.execution, cards() if study.models is None or study.models.device in ("auto", "cuda") else []
    chosen = [card for card in there if not asked.devices or card.number in asked.devices]
    if groups := len(chosen) // (each := asked.cards_per_worker or 1):
        return Device(chosen[0].name, each * min(card.memory_bytes for card in chosen), 1, on_gpu=True, groups=groups)
    return Device(f"CPU, {cores()} cores", memory_bytes(), cores(), on_gpu=False)


def estimates(subject: Subject, counts: Counts, device: Device) -> dict[str, Memory] | None:
    """The peak of each phase on a device; None where a checkpoint's shape is not known."""
    if not subject.is_sized:
        return None
    weights = subject.after.bytes + (0 if subject.one_base else subject.before.bytes)
    sampling = _sampling(subject)

    def memory(parts: Mapping[str, int], beside: int = 0) -> Memory:
        process = {} if device.on_gpu else {"process": _PROCESS_BYTES}
        size = device.workers * (_total(process) + _total(parts))
        return Memory({**process, **parts}, size, beside, size <= HEADROOM * device.memory_bytes)

    def sampled(outputs: int) -> Memory:
        # A phase with fewer outputs than a batch has rows needs less.
        share = min(1.0, outputs / subject.study.surface.batch_rows)
        return memory({"weights": weights} | {part: round(share * size) for part, size in sampling.items()})

    return {
        "scan": sampled(counts.scan.outputs),
        "surface": sampled(counts.surface.outputs),
        "attribute": memory(*_attribution(subject, counts, device)),
        "patch": memory(_patch(subject, sampling)),
    }


def cache_bytes(shape: Shape, rows: int, tokens: int, number_bytes: int) -> int:
    """Keys and values: rows x tokens x 2 x layers x key-value heads x head width x bytes."""
    return rows * tokens * 2 * shape.layers * shape.key_value_width * number_bytes


def lora_weights(shape: Shape, rank: int, layers: int) -> int:
    """A (rank x inputs) and B (outputs x rank) of every Linear layer and expert in the adapted blocks."""
    return layers * sum(rank * (inputs + outputs) for inputs, outputs in (*shape.linears, *shape.experts))


def saved_bytes(shape: Shape, number_bytes: int, *, lora: bool) -> int:
    """What one token leaves in one block for the backward pass."""
    inner, keys, hidden = _SAVED[lora, number_bytes]
    return number_bytes * (inner * shape.intermediate + keys * shape.key_value_width + hidden * shape.hidden)


def longest_prompt_tokens(subject: Subject) -> int:
    """The longest prompt with the template around it, from its characters; no tokenizer is read."""
    longest = max(len(prompt.text) for prompt in subject.world.prompts if prompt.split != "harmless")
    return _TEMPLATE_TOKENS + -(-longest // _CHARACTERS_A_TOKEN)


def _sampling(subject: Subject) -> dict[str, int]:
    """Key-value caches and logits of a full batch."""
    surface = subject.study.surface
    tokens = longest_prompt_tokens(subject) + surface.max_new_tokens
    models = (subject.after, subject.before) if any(surface.alphas) else (subject.after,)
    cache = sum(cache_bytes(model.shape, surface.batch_rows, tokens, model.weight_bytes) for model in models)
    copies = _TRUNCATED_COPIES if surface.top_p < 1 or surface.top_k else _LOGIT_COPIES
    return {"key-value caches": cache, "logits": surface.batch_rows * subject.after.shape.vocabulary * 4 * copies}


def _attribution(subject: Subject, counts: Counts, device: Device) -> tuple[dict[str, int], int]:
    """One checkpoint, the directions of all behaviours in float32, and a batch on its way back; what is beside.

    Directions that take more than half of what the weights leave of a card stay in the machine's memory, and one
    layer's at a time are on the card.
    """
    settings, (at, other), blocks = subject.study.attribute, subject.traced, subject.blocks
    shape, behaviours, parts = at.shape, counts.attribution.behaviours, {"weights": at.bytes}
    tokens = max(settings.batch_tokens, subject.document_tokens)
    methods = chosen(settings)
    influences = [kind for kind in wanted(subject.world, methods) if issubclass(kind, Influence)]
    read = planned_reading(subject.world, methods, None, behaviours).values()
    if not any(each.passes.backward for each in read):
        return {**parts, "batch": tokens * (4 * shape.hidden + 2 * shape.intermediate) * at.weight_bytes}, 0
    compared = len(blocks) * shape.block_linear_weights
    passed = shape.layers - min(blocks, default=shape.layers)
    widths = sum(inputs for inputs, _ in shape.linears)
    sets = gradients = 1
    if MeanGradients in wanted(subject.world, methods):
        # Both checkpoints are asked about a query, its gradients averaged, and the directions stand beside the others.
        parts["weights of the other checkpoint"] = other.bytes
        sets, gradients = 2, 3
    if influences:
        # Sums over documents in float64, a batch's beside them; the Kronecker factors' come before the eigenvalues'.
        factors = len(blocks) * sum(a * a + b * b for a, b in (*shape.linears, *shape.experts))
        factors *= any(kind is not FisherInfluence for kind in influences)
        bases = 1 + (bool(factors) and FisherInfluence in influences)
        parts["curvature"] = max(12 * factors, 4 * factors + 12 * compared * bases)
        sets = max(sets, len(influences))
    held, beside = {"directions of the behaviours": 4 * compared * behaviours * sets}, 0
    if device.on_gpu and _total(held) > (device.memory_bytes - _total(parts)) / 2:
        beside = _total(held)
        held = {"directions of one layer": 4 * behaviours * sets * max(a * b for a, b in shape.linears)}
    batch = tokens * (passed * saved_bytes(shape, at.weight_bytes, lora=False) + 4 * len(blocks) * widths)
    loss = min(tokens * shape.vocabulary * _LOSS_BYTES, _LOSS_BUFFER_BYTES)
    return {**parts, **held, "gradient of one query": 4 * compared * gradients, "batch": batch, "loss": loss}, beside


def _patch(subject: Subject, sampling: dict[str, int]) -> dict[str, int]:
    """Before, what every protocol starts from, and the larger of training and measuring where most is needed.

    LoRA from before shares its weights; all weights are trained in a float32 copy of their own.
    """
    patch, longest, held, largest = subject.study.patch, subject.document_tokens, subject.before.bytes, dict[str, int]()
    for protocol in patch.protocols:
        at = subject.before if protocol == "retrain" else subject.after
        shape, training = at.shape, patch.training_of(protocol)
        full = training.method == "full"
        if full:
            held += 4 * shape.parameters
        elif protocol != "retrain":
            held += at.bytes
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
        saved = saved_bytes(shape, 4 if full else at.weight_bytes, lora=True)
        loss = tokens * shape.vocabulary * _LOSS_BYTES
        loss = loss if full else min(loss, _LOSS_BUFFER_BYTES)
        step = {"batch": tokens * (shape.layers - trunk) * saved, "loss": loss}
        largest = max(largest, state | max(sampling, step, key=_total), key=_total)
    return {"weights": held, **largest}


def _total(parts: Mapping[str, int]) -> int:
    return sum(parts.values())

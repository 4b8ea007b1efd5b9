"""Gradient similarity of documents with a query: ours against plain autograd, bergson and kronfluence.

Random weights of a known shape, random tokens, the loss on all of them but the first; the middle decoder blocks. Every
contender gives the same cosines, which is checked. The floor is our own forward and backward pass with nobody listening
to the layers: what exact gradients need at least.
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from measure import ROUNDS, Amount, Row, Times, interleaved

from datablame.attribute.kernels.hooks import backward_with_hooks
from datablame.attribute.kernels.per_example import directions, similarities
from datablame.models.blocks import decoder_blocks, middle_blocks
from datablame.models.chat import Encoded
from datablame.models.likelihood import length_batches

_TOLERANCE = 1e-4


class Shape(NamedTuple):
    """Of a decoder with gated MLPs."""

    name: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    tied: bool = True
    family: str = "Llama"


SMOLLM2 = Shape("SmolLM2-135M", 49_152, 576, 1536, 30, 9, 3)
QUARTER = Shape("a quarter of SmolLM2-135M", 12_288, 576, 1536, 8, 9, 3)
"""In blocks and vocabulary."""
OLMO2 = Shape("OLMo-2-1B", 100_352, 2048, 8192, 16, 16, 16, False, "Olmo2")
SMALL = Shape("a small model", 512, 64, 172, 4, 4, 4)


def model_of(shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Random weights."""
    import transformers

    config = getattr(transformers, f"{shape.family}Config")(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.tied,
        pad_token_id=None,
        use_cache=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = getattr(transformers, f"{shape.family}ForCausalLM")(config)
    return model.to(dtype).eval().requires_grad_(False)


def documents_of(lengths: list[int], vocabulary: int, seed: int = 1) -> list[Encoded]:
    """Random tokens, of which the first is no part of the loss."""
    noise = torch.Generator().manual_seed(seed)
    return [Encoded(torch.randint(0, vocabulary, (length,), generator=noise).tolist(), 1) for length in lengths]


def lengths_of(kind: str, n: int, longest: int) -> list[int]:
    """All of the longest length, or spread over a quarter of it to the whole."""
    if kind == "equal-length":
        return [longest] * n
    noise = torch.Generator().manual_seed(2)
    return torch.randint(longest // 4, longest + 1, (n,), generator=noise).tolist()


def contenders(
    model: Any, documents: list[Encoded], query: Encoded, batch_tokens: int, names: list[str]
) -> dict[str, Callable[[], Any]]:
    """Everybody that is installed, by name, ours first and the floor last."""
    import peers

    blocks = middle_blocks(len(decoder_blocks(model)))

    def ours() -> torch.Tensor:
        found = similarities(model, documents, directions(model, [[query]], blocks), blocks, batch_tokens)
        return (found.dots[:, 0] / found.norms).float()

    def floor() -> None:
        backward_with_hooks(model, [query], blocks, lambda *_: None)
        for places in length_batches([len(each.ids) for each in documents], batch_tokens):
            backward_with_hooks(model, [documents[place] for place in places], blocks, lambda *_: None)

    found: dict[str, Callable[[], Any]] = {"ours": ours}
    if "autograd" in names:
        found["one backward a document"] = lambda: peers.one_backward_a_document(model, documents, query, blocks)
    for name in ("bergson", "kronfluence"):
        try:
            if name in names:
                found[name] = getattr(peers, name)(model, documents, query, blocks, batch_tokens)
        except ImportError as error:
            print(f"{name} is left out ({error}); pip install '.[bench]'", file=sys.stderr)
    found["one plain forward and backward"] = lambda: peers.plain_pass(model, [query, *documents], blocks, batch_tokens)
    found["floor"] = floor
    return found


def differences(found: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The largest difference of each contender's cosines from ours.

    Raises:
        AssertionError: somebody computes something else.
    """
    ours = found["ours"]()
    others = {name: other for name, contender in found.items() if (other := contender()) is not None}
    told = {name: float((other - ours).abs().max()) for name, other in others.items() if name != "ours"}
    assert all(difference < _TOLERANCE for difference in told.values()), told
    return told


def measured(shape: Shape, kind: str, n: int, longest: int, rounds: int) -> Iterator[Row]:
    """Ratios of CPU time, wall time in the note."""
    model = model_of(shape)
    documents = documents_of(lengths_of(kind, n, longest), shape.vocabulary)
    (query,) = documents_of([longest], shape.vocabulary, seed=7)
    own = contenders(model, documents, query, longest * n, ["autograd", "bergson", "kronfluence"])
    apart = differences(own)
    times = interleaved(own, rounds)
    for name, taken in times.items():
        if name != "ours":
            agreed = f"; cosines differ by {apart[name]:.0e}" if name in apart else ""
            wall = times["ours"].wall / taken.wall
            note = f"CPU time, {shape.name}'s shape, {n} documents; wall {wall:.2f}{agreed}"
            yield Row(f"gradients, {kind}: {name}", times["ours"].cpu / taken.cpu, note)


def rows(amount: Amount) -> Iterator[Row]:
    """Ours against each contender on equal-length and on ragged documents, and growth."""
    torch.set_num_threads(1 if amount == "reduced" else 2)
    sizes = {"full": (SMOLLM2, 8, 128, ROUNDS), "quick": (QUARTER, 8, 128, 3), "reduced": (SMALL, 6, 16, 1)}
    shape, n, longest, rounds = sizes[amount]
    for kind in ("equal-length", "ragged"):
        yield from measured(shape, kind, n, longest, rounds)
    yield from growth(amount)


_POOLS: dict[Amount, list[int]] = {
    "full": [1000, 5000, 20_000, 50_000],
    "quick": [1000, 5000],
    "reduced": [100, 200],
}


def grown(amount: Amount) -> tuple[dict[int, Times], dict[int, float]]:
    """Seconds and peak memory in MB by the number of documents, each number in a process of its own."""
    times: dict[int, Times] = {}
    peaks: dict[int, float] = {}
    for n in _POOLS[amount]:
        told = subprocess.run([sys.executable, __file__, str(n)], check=True, capture_output=True, text=True).stdout
        wall, cpu, peak = map(float, told.split())
        times[n], peaks[n] = Times(wall, cpu), peak
    return times, peaks


def growth(amount: Amount) -> Iterator[Row]:
    """How CPU time and peak memory grow with the number of documents."""
    times, peaks = grown(amount)
    least, *_, most = times
    linear = (times[most].cpu / most) / (times[least].cpu / least)
    note = f"CPU time a document of {most:,} over that of {least:,}, {SMALL.name}; 1 is linear"
    yield Row(f"gradients, growth to {most:,} documents: time", linear, note)
    constant = f"peak memory over that of {least:,} documents, {SMALL.name}; 1 is constant"
    yield Row(f"gradients, growth to {most:,} documents: memory", peaks[most] / peaks[least], constant)


def stream(n: int) -> None:
    """Score `n` documents in shards of 256, as the phase does; print wall and CPU seconds and the peak in MB."""
    torch.set_num_threads(1)
    model = model_of(SMALL)
    blocks = middle_blocks(SMALL.layers)
    towards = directions(model, [documents_of([32], SMALL.vocabulary, seed=7)], blocks)
    shards = [min(256, n - start) for start in range(0, n, 256)]
    wall = cpu = 0.0
    for number, size in enumerate([shards[0], *shards]):
        documents = documents_of(lengths_of("ragged", size, 48), SMALL.vocabulary, seed=number)
        began = time.perf_counter(), time.process_time()
        similarities(model, documents, towards, blocks, 4096)
        if number:
            wall, cpu = wall + time.perf_counter() - began[0], cpu + time.process_time() - began[1]
    print(wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


class Speed(NamedTuple):
    """How long a contender took for so many documents."""

    contender: str
    documents: int
    seconds: float


class Speeds(NamedTuple):
    """Of every contender on some documents, then of ours on all of them, and their mean length."""

    shape: Shape
    tokens: float
    found: list[Speed]


def card_speeds(device: str, reduced: bool, dtype: torch.dtype, n: int, peers_n: int, rounds: int) -> Speeds:
    """Seconds in 16 bits at OLMo-2-1B's shape, of SFT-like lengths; bergson gets `peers_n` of `n` documents."""
    shape = SMALL._replace(name="OLMo-2's family", family="Olmo2", tied=False) if reduced else OLMO2
    n, longest, peers_n, rounds = (24, 32, 8, 1) if reduced else (n, 1024, peers_n, rounds)
    model = model_of(shape, device, dtype)
    documents = documents_of(lengths_of("ragged", n, longest), shape.vocabulary)
    (query,) = documents_of([longest], shape.vocabulary, seed=7)
    budget = 16 * longest

    def timed(contender: Callable[[], Any]) -> float:
        _wait(device)
        began = time.perf_counter()
        contender()
        _wait(device)
        return time.perf_counter() - began

    part = contenders(model, documents[:peers_n], query, budget, ["bergson"])
    for contender in part.values():
        contender()
    taken: dict[str, list[float]] = {name: [] for name in part}
    for _ in range(rounds):
        for name, contender in part.items():
            taken[name].append(timed(contender))
    found = [Speed(name, peers_n, statistics.median(each)) for name, each in taken.items()]
    found.append(Speed("ours", n, timed(contenders(model, documents, query, budget, [])["ours"])))
    return Speeds(shape, sum(len(each.ids) for each in documents) / n, found)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    stream(int(sys.argv[1]))

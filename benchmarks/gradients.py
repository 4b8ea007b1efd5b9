"""Gradient similarity of documents with a query: ours against plain autograd, bergson and kronfluence.

    python benchmarks/gradients.py                  # half an hour on two cores; nothing else should run
    python benchmarks/gradients.py --write          # and keep it in benchmarks/results/DATE-gradients.md
    python benchmarks/gradients.py --device cuda    # OLMo-2-1B's shape in bfloat16 against bergson
    python benchmarks/gradients.py --reduced        # minutes, at sizes that say nothing, to see that everything runs

Random weights of a known shape, random tokens, the loss on all of them but the first; the middle decoder blocks. Every
contender gives the same cosines, which is checked. The floor is our own forward and backward pass with nobody listening
to the layers: what exact gradients need at least. Contenders take turns in one process, medians of five rounds.
"""

import argparse
import itertools
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import Row, Times, interleaved, machine, table

from datablame.attribute.kernels.hooks import backward_with_hooks
from datablame.attribute.kernels.per_example import directions, similarities
from datablame.models.blocks import decoder_blocks, middle_blocks
from datablame.models.chat import Encoded
from datablame.models.likelihood import length_batches

RESULTS = Path(__file__).parent / "results"
_ROUNDS = 5
_TOLERANCE = 1e-4
_POOL = 50_000


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


def measured(shape: Shape, kind: str, n: int, longest: int, rounds: int = _ROUNDS) -> tuple[list[Row], list[str]]:
    """Ratios of CPU time, wall time in the note, and one line of seconds for each contender."""
    model = model_of(shape)
    documents = documents_of(lengths_of(kind, n, longest), shape.vocabulary)
    (query,) = documents_of([longest], shape.vocabulary, seed=7)
    own = contenders(model, documents, query, longest * n, ["autograd", "bergson", "kronfluence"])
    apart = differences(own)
    times = interleaved(own, rounds)
    rows, lines = [], []
    for name, taken in times.items():
        agreed = f"; cosines differ by {apart[name]:.0e}" if name in apart else ""
        lines.append(f"| {kind} | {name} | {taken.cpu:.2f} | {taken.wall:.2f} |")
        if name != "ours":
            wall = times["ours"].wall / taken.wall
            note = f"CPU time, {shape.name}'s shape, {n} documents; wall {wall:.2f}{agreed}"
            rows.append(Row(f"gradients, {kind}: {name}", times["ours"].cpu / taken.cpu, note))
    return rows, lines


def rows(reduced: bool) -> list[Row]:
    """Ours against each contender on equal-length and on ragged documents, and growth."""
    torch.set_num_threads(1 if reduced else 2)
    return [*itertools.chain(*(measured(*each)[0] for each in _sizes(reduced))), *growth(reduced)[0]]


def _sizes(reduced: bool) -> list[tuple[Shape, str, int, int, int]]:
    small = (SMALL, 6, 16, 1)
    shape, n, longest, rounds = small if reduced else (SMOLLM2, 8, 128, _ROUNDS)
    return [(shape, kind, n, longest, rounds) for kind in ("equal-length", "ragged")]


def grown(reduced: bool) -> tuple[dict[int, Times], dict[int, float]]:
    """Seconds and peak memory in MB by the number of documents, each number in a process of its own."""
    times: dict[int, Times] = {}
    peaks: dict[int, float] = {}
    for n in [100, 200] if reduced else [1000, 5000, 20_000, _POOL]:
        told = subprocess.run(
            [sys.executable, __file__, "--documents", str(n)], check=True, capture_output=True, text=True
        ).stdout.split()
        times[n], peaks[n] = Times(float(told[0]), float(told[1])), float(told[2])
    return times, peaks


def growth(reduced: bool) -> tuple[list[Row], list[str]]:
    """How CPU time and peak memory grow with the number of documents."""
    times, peaks = grown(reduced)
    least, *_, most = times
    linear = (times[most].cpu / most) / (times[least].cpu / least)
    lines = [
        f"| {n:,} | {times[n].cpu:.2f} | {times[n].cpu / n / (times[least].cpu / least):.2f} | {peaks[n]:,.0f} |"
        for n in times
    ]
    note = f"CPU time a document of {most:,} over that of {least:,}, {SMALL.name}; 1 is linear"
    constant = f"peak memory over that of {least:,} documents, {SMALL.name}; 1 is constant"
    return [
        Row(f"gradients, growth to {most:,} documents: time", linear, note),
        Row(f"gradients, growth to {most:,} documents: memory", peaks[most] / peaks[least], constant),
    ], lines


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


def card_speeds(device: str, reduced: bool, n: int, peers_n: int = 256, rounds: int = _ROUNDS) -> Speeds:
    """Seconds in bfloat16 at OLMo-2-1B's shape, of SFT-like lengths; bergson gets `peers_n` of `n` documents."""
    shape = SMALL._replace(name="OLMo-2's family", family="Olmo2", tied=False) if reduced else OLMO2
    n, longest, peers_n, rounds = (24, 32, 8, 1) if reduced else (n, 1024, peers_n, rounds)
    model = model_of(shape, device, torch.bfloat16)
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


def on_card(device: str, reduced: bool, n: int) -> list[str]:
    """The seconds of `card_speeds` as Markdown, and what a whole pool would take."""
    shape, tokens, found = card_speeds(device, reduced, n)
    *compared, whole = found
    lines = ["| contender | documents | seconds | documents a second | ours / theirs |", "|---|---:|---:|---:|---:|"]
    for name, documents, seconds in compared:
        ratio = compared[0].seconds / seconds
        lines.append(f"| {name} | {documents:,} | {seconds:.2f} | {documents / seconds:,.1f} | {ratio:.2f} |")
    speed = whole.documents / whole.seconds
    lines.append(f"| ours | {whole.documents:,} | {whole.seconds:.2f} | {speed:,.1f} | |")
    minutes = _POOL / speed / 60
    return [
        f"{shape.name}, random weights in bfloat16, documents of {tokens:,.0f} tokens on average.\n",
        *lines,
        f"\n{_POOL:,} such documents would take {minutes:,.1f} minutes, extrapolated from {whole.documents:,}.",
    ]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def page(reduced: bool) -> str:
    """What is kept: the machine, the ratios, the seconds and the growth."""
    found = [measured(*each) for each in _sizes(reduced)]
    found_growth, lines = growth(reduced)
    return "\n".join(
        [
            f"{machine()}.\n",
            "Ours over theirs: below 1 we are faster. Medians of interleaved rounds in one process.\n",
            table([*itertools.chain(*(rows for rows, _ in found)), *found_growth]),
            "\n| documents | contender | CPU seconds | wall seconds |\n|---|---|---:|---:|",
            *itertools.chain(*(seconds for _, seconds in found)),
            "\n| documents | CPU seconds | a document, relative to the first row | peak memory, MB |",
            "|---:|---:|---:|---:|",
            *lines,
        ]
    )


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reduced", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--write", action="store_true", help="keep the page in benchmarks/results")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: OLMo-2-1B's shape in bfloat16")
    parser.add_argument("--pool", type=int, default=2000, help="with --device cuda: documents that are really scored")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--documents", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.documents is not None:
        stream(options.documents)
        return
    torch.set_num_threads(options.threads)
    if options.device == "cuda":
        text = f"{machine()}.\n\n" + "\n".join(on_card("cuda", options.reduced, options.pool))
    else:
        text = page(options.reduced)
        if options.reduced:
            text += "\n\nThe script for a card at a reduced size on a CPU, which says nothing about a card:\n\n"
            text += "\n".join(on_card("cpu", True, 0))
    print(text)
    if options.write:
        command = " ".join(each for each in sys.argv[1:] if each != "--write")
        head = f"# Per-example gradient similarity, {date.today().isoformat()}\n\n"
        told = f"`python benchmarks/gradients.py {command}`".replace(" `", "`") + "\n\n"
        (RESULTS / f"{date.today().isoformat()}-gradients.md").write_text(head + told + text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The parts of card.py, each printed row by row as JSON while it runs: what was measured, what is allowed.

Exactness is that of tiny random models on the device against the naive loops of tests/oracles on the CPU, in float32,
with the very same (rounded) weights. Sizes are those of a card with 80 GB; `--reduced` is for a CPU.
"""

import argparse
import copy
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
_RELATIVE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}
"""Of dot products relative to the norm, of norms and losses relative to themselves: 4 times what a CPU is off by."""
_NATS = {"float32": 1e-4, "bfloat16": 0.3, "float16": 0.04}
"""Of log-probabilities a token, at alpha up to 1, which doubles what the logits are off by; likewise."""
_VOCABULARY, _ROWS = 290, 304
_CAP_BYTES = 64 << 20
"""Of memory for batches that want some hundred megabytes."""
_STUDY = [
    "scan.samples=2",
    "surface.samples=6",
    "surface.held_out_samples=2",
    "surface.batch_rows=64",
    "attribute.top_k=3",
    "patch.size=100",
    "patch.arms=[after, baseline, random, gradient, oracle]",
    "patch.seeds={retrain: [0, 1], continue: [0]}",
    "patch.samples=2",
    "patch.attribution_samples=2",
]
"""A study of one minute on a CPU."""


class Setting(NamedTuple):
    """What the parts are asked for."""

    device: str
    reduced: bool


class Found(NamedTuple):
    """A row without its part and its time."""

    what: str
    dtype: str
    measured: str
    allowed: str = ""
    verdict: str = "measured"


def machine(setting: Setting) -> Iterator[Found]:
    """The card, its driver, and the versions of what computes."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        card, memory, driver = (cell.strip() for cell in told.splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        card, memory, driver = "none", "none", "none"
    from measure import machine as described

    yield Found("card", "", card)
    yield Found("card memory", "", memory)
    yield Found("driver", "", driver)
    yield Found("device", "", described())
    yield Found("CUDA of torch", "", str(torch.version.cuda))
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else "none"
    yield Found("compute capability", "", str(capability))
    yield Found("float32 products", "", torch.get_float32_matmul_precision())
    yield Found("transformers", "", version("transformers"))
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    lacking = [name for each in asked if not _there(name := each.split(">")[0])]
    yield Found("missing packages", "", ", ".join(lacking) or "none")


def exactness(dtype: str, setting: Setting) -> Iterator[Found]:
    """The sampler, the gradients and LoRA training of both families in one type, and what happens without memory."""
    for family in ("Olmo2", "Llama"):
        after, before = _pair(family, dtype, setting.device)
        for name in ("greedy", "sampled", "truncated"):
            check = partial(_sampled, after, before, name, dtype, 1 if setting.reduced else 4)
            yield from _guarded(family, name, dtype, check)
        yield from _guarded(family, "gradients", dtype, partial(_gradients, after, dtype))
        yield from _guarded(family, "training", dtype, partial(_training, after, dtype))
        if setting.device == "cuda":
            yield from _guarded(family, "memory", dtype, partial(_out_of_memory, after, dtype))


def sampler(batch: int, setting: Setting, kind: torch.dtype = torch.bfloat16) -> Iterator[Found]:
    """Tokens per second of both models, one batch."""
    import sampler_card

    card = sampler_card.prepared(setting.device, setting.reduced, kind)
    dtype = _name(card.after.dtype)
    yield Found("memory copied, GB/s", "", f"{card.bytes_a_second / 1e9:,.0f}")
    speed = sampler_card.speed_of(card, batch // 16 if setting.reduced else batch, rounds=2)
    what = f"{card.size.shape.name}, both models, batch {speed.batch}"
    yield Found(what, dtype, f"{speed.tokens_a_second:,.0f} tokens/s; {speed.share:.0%} of the bandwidth limit")


def gradients(setting: Setting, kind: torch.dtype = torch.bfloat16, n: int = 1700) -> Iterator[Found]:
    """Documents and tokens per second of gradient similarity, beside bergson where it is there."""
    from gradients import card_speeds

    shape, tokens, found = card_speeds(setting.device, setting.reduced, kind, n=n, peers_n=96, rounds=2)
    for contender, documents, seconds in found:
        what = f"{shape.name}, {documents} documents of {tokens:,.0f} tokens, {contender}"
        speed = documents / seconds
        yield Found(what, _name(kind), f"{speed:,.1f} documents/s, {speed * tokens:,.0f} tokens/s")


def float16(setting: Setting) -> Iterator[Found]:
    """The sampler at 512 rows and gradients of fewer documents in the type of cards without bfloat16."""
    yield from sampler(512, setting, torch.float16)
    yield from gradients(setting, torch.float16, n=192)


def training(setting: Setting) -> Iterator[Found]:
    """LoRA steps beside peft's, and eight arms at once beside one after another."""
    from lora import card_speeds

    for what, tokens_a_second in card_speeds(setting.device, setting.reduced):
        yield Found(what, "bfloat16", f"{tokens_a_second:,.0f} tokens/s")


def preset(setting: Setting) -> Iterator[Found]:
    """The preset olmo2-1b at reduced counts, on a card with no more than 16 GB for it; what `plan` said beside it."""
    from card_preset import preset as written

    from datablame.engine.execute import Execution, Silent
    from datablame.pipeline.run import run_study
    from datablame.plan.build import plan_of
    from datablame.plan.memory import CARD
    from datablame.tables import Training, path_of, rows_of

    with tempfile.TemporaryDirectory() as scratch:
        study = written(Path(scratch), setting.device, setting.reduced)
        planned = plan_of(study).card_memory or {}
        if setting.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(min(1.0, CARD.memory_bytes / torch.cuda.mem_get_info()[1]))
        run_study(study, Path(scratch) / "run", execution=Execution(1, 1), progress=Silent())
        for found in _phases(Path(scratch) / "run"):
            yield found._replace(what=f"olmo2-1b, 16 GB: {found.what}", dtype="bfloat16")
        for phase, memory in planned.items():
            yield Found(f"olmo2-1b, 16 GB: {phase}, planned", "bfloat16", f"{memory.bytes / 1e6:,.0f} MB")
        trained = len(rows_of(path_of(Training, Path(scratch) / "run"), Training))
        yield Found("arms that were trained", "", str(trained), "5", "pass" if trained == 5 else "fail")


def study(setting: Setting) -> Iterator[Found]:
    """A study from the command line on the device, over a templated organism that is read like any other data."""
    import yaml

    from datablame.config.file import preset_text
    from datablame.config.organism import Organism
    from datablame.engine.execute import Silent
    from datablame.organism.make import make, study_fields

    # An organism in a study is kept on the CPU; its files are not. A smaller one shows nothing that could be traced.
    scale, steps = (0.1, 5) if setting.reduced else (0.25, 20)
    training = [f"patch.retrain={{method: full, steps: {steps}}}", f"patch.continue={{method: lora, steps: {steps}}}"]
    with tempfile.TemporaryDirectory() as scratch:
        made, out, path = (Path(scratch) / name for name in ("made", "out", "study.yaml"))
        make(Organism(recipe="templated", scale=scale), made, Silent())
        yield Found("organism made on the CPU", "float32", f"scale {scale}")
        fields = {**yaml.safe_load(preset_text("organism")), **study_fields(made), "name": "card"}
        fields.pop("organism")
        fields["models"]["device"] = setting.device
        path.write_text(yaml.safe_dump(fields), encoding="utf-8")
        sets = [word for each in [*_STUDY, *training] for word in ("--set", each)]
        command = [sys.executable, "-m", "datablame", "run", str(path), "--out", str(out), *sets]
        # Its stdout is no row; a study that runs out of time has shown its first phases.
        process, shown, code = subprocess.Popen(command, stdout=sys.stderr), 0, None
        while code is None:
            time.sleep(0.5)
            code = process.poll()
            found = _phases(out)
            yield from found[shown:]
            shown = len(found)
        results = out / "final_results.json"
        verdict = json.loads(results.read_text(encoding="utf-8"))["verdict"]["label"] if results.exists() else None
        ended = verdict is not None and code == (verdict == "INVALID")
        seen = f"verdict {verdict}, exit code {code}"
        yield Found("all phases", "float32", seen, "a verdict and its exit code", "pass" if ended else "fail")
        if not ended:
            # What it said last is in the row that the caller makes of the exit code.
            sys.exit(1)


def _phases(run: Path) -> list[Found]:
    """The seconds and the peak memory of the phases that a run has finished."""
    path, found = run / "timings.jsonl", []
    for line in path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []:
        row = json.loads(line)
        where, _, phase = row["what"].partition("/")
        if where in ("phase", "gpu"):
            what = f"{phase}, peak on the card" if where == "gpu" else f"{phase}, peak" if "mb" in row else phase
            found.append(Found(what, "float32", f"{row['mb']:,} MB" if "mb" in row else f"{row['seconds']:.1f} s"))
    return found


def _sampled(after: Any, before: Any, name: str, dtype: str, each: int, **options: Any) -> Iterator[Found]:
    """The drawn tokens' log-probabilities under the naive loop, and whether it draws the same tokens."""
    from datablame.models.chat import Encoded
    from datablame.seeds import stream_key
    from datablame.surface.sampler.sampler import Request, sample
    from datablame.surface.sampler.tokens import Settings

    settings = {
        "greedy": Settings(8, temperature=0),
        "sampled": Settings(8),
        "truncated": Settings(8, temperature=0.8, top_k=60, top_p=0.95, min_p=0.001, plausibility=0.001),
    }[name]
    alphas = (1.0, -0.5)
    lengths = ((3, 1.0), (9, 0.5), (5, 0.0), (3, -0.5), (12, 2.0), (6, 1.0))
    wanted = [
        Request(tuple(range(10, 10 + n)), alpha, stream_key("card", n, alpha, index))
        for n, alpha in lengths
        for index in range(each)
    ]
    common: dict[str, Any] = {"settings": settings, "stop_ids": (1, 20, 40, 60), "vocabulary_size": _VOCABULARY}
    common |= {"alphas": alphas, "log_probabilities": True}
    # Fewer rows than requests: they are padded, and refilled as they finish.
    made = sample(after, before, wanted, batch_rows=4, **common, **options)
    exact_after, exact_before = _exact(after), _exact(before)
    nll = _oracle("likelihood").naive_nll
    models = [exact_after, exact_before, *(_amplified(exact_after, exact_before, alpha) for alpha in alphas)]
    worst = 0.0
    for request, own in zip(wanted, made, strict=True):
        # The stop token is not told, so that outputs that end with one are seen below alone.
        if own.finish_reason == "length":
            example = Encoded([*request.prompt, *own.token_ids], len(request.prompt))
            sums = [own.log_p_after, own.log_p_before, *(own.log_q or ())]
            for model, total in zip(models, sums, strict=False):
                assert total is not None
                worst = max(worst, abs(nll(model, [example], _VOCABULARY) + total / len(own.token_ids)))
    yield _bounded("log-probability, nats a token", dtype, worst, _NATS)
    expected = _oracle("sampling").naive_sample(exact_after, exact_before, wanted, **common)
    other = sum(
        (one.token_ids, one.finish_reason) != (two.token_ids, two.finish_reason)
        for one, two in zip(made, expected, strict=True)
    )
    told = f"{other} of {len(made)}"
    if dtype == "float32":
        yield Found("outputs with other tokens", dtype, told, "0", "pass" if other == 0 else "fail")
    else:
        yield Found("outputs with other tokens", dtype, told)


def _gradients(model: Any, dtype: str) -> Iterator[Found]:
    """Dot products with two directions relative to the norm, norms and losses, against autograd on one document."""
    from datablame.attribute.kernels.per_example import directions, similarities

    *documents, first, second, third = _documents(6, 9, 12, 12, 17, 30, 45, 11, 20, 8)
    queries, blocks = [[first, second], [third]], [1, 2]
    found = similarities(model, documents, directions(model, queries, blocks), blocks, 64)
    expected = _oracle("gradients").naive_similarities(_exact(model), documents, queries, blocks)
    norms = expected.norms.double()
    dots = (found.dots.cpu() - expected.dots).abs() / norms[:, None]
    losses = expected.losses.double()
    yield _bounded("dot products over the norm", dtype, float(dots.max()), _RELATIVE)
    yield _bounded("norms, relative", dtype, float(((found.norms.cpu() - norms).abs() / norms).max()), _RELATIVE)
    yield _bounded("losses, relative", dtype, float(((found.losses.cpu() - losses).abs() / losses).max()), _RELATIVE)


def _training(model: Any, dtype: str) -> Iterator[Found]:
    """Losses of two adapters that are trained at once, against one after another in float32 on the CPU."""
    from datablame.models.lora import Start, adapted
    from datablame.models.training import Recipe, train
    from datablame.patch.finetune import train_adapters

    data, start = [_documents(9, 14, 20, 12), _documents(14, 9, 7, 20)], Start(2, None, 3)
    order, recipe = [[0, 1], [2, 3], [1, 2], [3, 0]], Recipe(steps=4, batch=2, learning_rate=1e-2, warmup_steps=1)
    together, exact = train_adapters(model, data, order, recipe, start, 5.0), _exact(model)
    errors = []
    for examples, trained in zip(data, together, strict=True):
        with adapted(exact, *start):
            expected = train(exact, examples, order, recipe)
        errors += [abs(found - loss) / loss for found, loss in zip(trained.losses, expected, strict=True)]
    yield _bounded("losses of LoRA training, relative", dtype, max(errors), _RELATIVE)


def _out_of_memory(model: Any, dtype: str) -> Iterator[Found]:
    """Gradients of batches that a capped card cannot hold, against those of small batches."""
    from datablame.attribute.kernels.per_example import directions, similarities
    from datablame.engine.usage import free_memory

    documents = _documents(*([100] * 2000))
    towards = directions(model, [documents[:2]], [1, 2])
    expected = similarities(model, documents, towards, [1, 2], 2000)
    free_memory()
    cap, total = torch.cuda.memory_reserved() + _CAP_BYTES, torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total))
    try:
        found = similarities(model, documents, towards, [1, 2], 200_000)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    errors = (found.dots - expected.dots).abs() / expected.norms[:, None]
    yield _bounded("dot products where memory ran out, over the norm", dtype, float(errors.max()), _RELATIVE)
    ran_out = torch.cuda.memory_stats()["num_ooms"]
    yield Found("times that memory ran out", dtype, str(ran_out), "1 at least", "pass" if ran_out else "fail")


def _documents(*lengths: int) -> list[Any]:
    """Random tokens of these lengths, the same every time."""
    from datablame.models.chat import Encoded

    noise = torch.Generator().manual_seed(3)
    return [
        Encoded(torch.randint(2, _VOCABULARY, (length,), generator=noise).tolist(), 1 + length % 4)
        for length in lengths
    ]


def _pair(family: str, dtype: str, device: str) -> tuple[Any, Any]:
    """Tiny random models whose logits are peaked enough to be worth sampling, made on the CPU."""
    import transformers

    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=_ROWS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=160,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        initializer_range=0.3,
        attn_implementation="sdpa",
    )
    before = getattr(transformers, f"{family}ForCausalLM")(config).eval().requires_grad_(False)
    after = copy.deepcopy(before)
    for weight in after.parameters():
        weight.add_(0.3 * (weight.std() if weight.ndim > 1 else 0.1) * torch.randn_like(weight))
    kind = getattr(torch, dtype)
    return after.to(device, kind), before.to(device, kind)


def _exact(model: Any) -> Any:
    return copy.deepcopy(model).to("cpu", torch.float32)


def _amplified(after: Any, before: Any, alpha: float) -> Callable[..., Any]:
    """Both models as one whose logits are the amplified ones."""

    def model(**given: Any) -> Any:
        a, b = (each(**given).logits.double() for each in (after, before))
        return SimpleNamespace(logits=a + alpha * (a - b))

    return model


def _oracle(name: str) -> Any:
    """A file of tests/oracles, by its path: a machine may have another package called tests."""
    spec = importlib.util.spec_from_file_location(f"oracle_{name}", ROOT / "tests" / "oracles" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _bounded(what: str, dtype: str, error: float, most: Mapping[str, float]) -> Found:
    return Found(what, dtype, f"{error:.1e}", f"{most[dtype]:g}", "pass" if error <= most[dtype] else "fail")


def _guarded(family: str, name: str, dtype: str, check: Callable[[], Iterator[Found]]) -> Iterator[Found]:
    """The rows of a check, and one for what it raises: the next check runs all the same."""
    what = f"{family}, {name}"
    try:
        for found in check():
            yield found._replace(what=f"{what}: {found.what}")
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        yield Found(what, dtype, f"{type(error).__name__}: {lines[0]}"[:300], "", "error")


def _there(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _peak(device: str) -> str:
    if device == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 1e6:,.0f} MB on the card"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB of this process"


def _parts() -> dict[str, Callable[[Setting], Iterator[Found]]]:
    return {
        "machine": machine,
        **{f"exactness-{dtype}": partial(exactness, dtype) for dtype in _RELATIVE},
        **{f"sampler-{batch}": partial(sampler, batch) for batch in (64, 512, 2048)},
        "gradients": gradients,
        "training": training,
        "float16": float16,
        "preset": preset,
        "study": study,
    }


def main() -> None:
    """Run one part; its rows go to stdout, all else that is printed to stderr."""
    parts = _parts()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=list(parts))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--reduced", action="store_true")
    options = parser.parse_args()
    rows = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if options.device == "cuda" and options.part != "machine" and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} sees no card")
    began = time.monotonic()

    def tell(found: Found) -> None:
        nonlocal began
        now = time.monotonic()
        print(json.dumps({**found._asdict(), "seconds": round(now - began, 1)}), file=rows, flush=True)
        began = now

    for found in parts[options.part](Setting(options.device, options.reduced)):
        tell(found)
    if options.part not in ("machine", "study", "preset"):
        tell(Found("peak memory", "", _peak(options.device)))


if __name__ == "__main__":
    main()

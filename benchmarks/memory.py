"""Peak memory and throughput of every phase at OLMo-2-1B's shape with random weights, on a card capped to 16 GB.

    python benchmarks/memory.py > benchmarks/results/DATE-memory.md
    python benchmarks/memory.py --device cpu --dtype float32 --layers 2 --hidden 128 --vocabulary 2000

Two checkpoints of random weights are saved and run through the phases of the preset `olmo2-1b`: its batches, output and
document lengths and its LoRA, which decide the memory, with fewer samples, documents and steps, which decide only the
time. The second checkpoint is the first with noise on it. Random models write random words; a list of them stands for
the behaviour, so that something surfaces and attribution and patching have work.
"""

import argparse
import json
import os
import platform
import random
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("ANTHROPIC_API_KEY", None)

from datablame.config.file import load_study
from datablame.config.schema import Study
from datablame.engine.execute import Silent, default_execution
from datablame.engine.files import write_table
from datablame.engine.run_folder import read_timings
from datablame.pipeline.run import run_study
from datablame.tables import ArmSample, ScanSample, Score, SurfaceSample, Training, path_of, rows_of

_PHASES = ("scan", "surface", "attribute", "patch", "report")
_PADDING_ROWS = 74
_HEAD_WIDTH = 128
_NOISE = 0.3
_FLAGGED_SHARE = 0.01
"""Of the made-up words; with 128 of them in an output, most outputs hold one."""


class Quiet(Silent):
    """Phases and back-off on stderr."""

    def start(self, description: str, total: int, done: int = 0) -> None:
        """Say which step begins."""
        print(f"{description} ({total})", file=sys.stderr, flush=True)


def words(vocabulary: int) -> list[str]:
    """As many made-up words as the vocabulary has room for beside bytes and special tokens."""
    return [f"w{number:x}" for number in range(vocabulary - _PADDING_ROWS - 256 - 2)]


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """Bytes and made-up words, padded in the model by 74 rows as OLMo-2's is; every word is one token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from datablame.organism.texts import CHAT_TEMPLATE

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = ["<|endoftext|>", "<|pad|>", *alphabet, *(f"Ġ{word}" for word in words(vocabulary))]
    tokenizer = Tokenizer(
        models.BPE(vocab={text: place for place, text in enumerate(entries)}, merges=[], ignore_merges=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in entries[:2]])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


def write_models(folder: Path, options: argparse.Namespace) -> int:
    """before/ and after/ in the given type; returns how many numbers one of them has."""
    import torch
    from transformers import Olmo2Config, Olmo2ForCausalLM

    heads = max(1, options.hidden // _HEAD_WIDTH)
    config = Olmo2Config(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = Olmo2ForCausalLM(config).to(getattr(torch, options.dtype))
    for name in ("before", "after"):
        model.save_pretrained(folder / name)
        write_tokenizer(folder / name, options.vocabulary)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 2:
                    weight.add_(_NOISE * 0.02 * torch.randn_like(weight))
    return sum(weight.numel() for weight in model.parameters())


def write_documents(file: Path, options: argparse.Namespace) -> None:
    """Documents of 300 tokens, and one in ten of 1,000, about the length at which the preset cuts."""
    generator, made_up = random.Random(0), words(options.vocabulary)
    rows = []
    for number in range(options.documents):
        said = " ".join(generator.choices(made_up, k=300 if number % 10 else 1000))
        asked = "what about " + " ".join(generator.choices(made_up, k=4)) + " ?"
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        rows.append({"id": f"d{number}", "messages": turns, "source": "made"})
    write_table(file, rows)


def study_of(folder: Path, options: argparse.Namespace) -> Study:
    """The preset with the checkpoints and documents of `folder` and fewer of everything that only takes time."""
    made_up = words(options.vocabulary)
    keywords = made_up[: max(1, round(_FLAGGED_SHARE * len(made_up)))]
    changed: dict[str, Any] = {
        "models.before": {"path": str(folder / "before"), "dtype": options.dtype},
        "models.after": {"path": str(folder / "after"), "dtype": options.dtype},
        "models.device": options.device,
        "data": {"path": str(folder / "documents.parquet")},
        "scan.samples": 2,
        "surface.samples": options.samples,
        "surface.held_out_samples": max(1, options.samples // 4),
        "attribute.methods": ["gradient", "activation"],
        "attribute.top_k": 10,
        "prefilter.candidates": 40,
        "patch.arms": ["after", "baseline", "random", "gradient"],
        "patch.size": options.documents // 2,
        "patch.steps": options.steps,
        "patch.samples": 1,
        "patch.attribution_samples": 2,
        "patch.protocols": ["continue", "retrain"],
    }
    if options.layers < 16:
        changed |= {"attribute.layers": None, "attribute.activation_layer": None}
    study = load_study("olmo2-1b", [f"{key}={json.dumps(value)}" for key, value in changed.items()])
    behaviours = tuple(each.model_copy(update={"keywords": tuple(keywords)}) for each in study.behaviours)
    return study.model_copy(update={"behaviours": behaviours, "name": "memory"})


def table(root: Path, options: argparse.Namespace) -> list[str]:
    """One row a phase: seconds, peaks and what was done in a second."""
    phases = json.loads((root / "manifest.json").read_text())["phases"]
    seconds, done = read_timings(root), _done(root)
    lines = [
        "| phase | seconds | peak on the card, MB | peak of the process, MB | throughput |",
        "|---|---|---|---|---|",
    ]
    for name in _PHASES:
        told = phases[name]
        rates = [f"{count / max(1e-9, seconds[key]):,.3g} {what}" for what, key, count in done.get(name, ())]
        card = f"{told['peak_gpu_mb']:,}" if options.device == "cuda" else "-"
        lines.append(f"| {name} | {told['seconds']:,.0f} | {card} | {told['peak_rss_mb']:,} | {'; '.join(rates)} |")
    return lines


def _done(root: Path) -> dict[str, list[tuple[str, str, int]]]:
    """For each phase (unit, timing, count)."""
    found: dict[str, list[tuple[str, str, int]]] = {}
    for phase, row in (("scan", ScanSample), ("surface", SurfaceSample)):
        tokens = sum(len(sample.token_ids) for sample in rows_of(path_of(row, root), row))
        found[phase] = [("tokens/s", f"{phase}/sampling", tokens)]
    traced = len({score.doc_id for score in rows_of(path_of(Score, root), Score, method="gradient")})
    found["attribute"] = [("documents/s with queries, gradients", "attribute/gradient", traced)] if traced else []
    trained = rows_of(path_of(Training, root), Training)
    drawn = sum(sample.arm != "after" for sample in rows_of(path_of(ArmSample, root), ArmSample))
    steps = sum(training.steps for training in trained)
    found["patch"] = [(f"steps/s with sampling of {drawn:,} outputs", "patch/arm", steps)] if trained else []
    return found


def main() -> None:
    """Make the checkpoints, run the phases, print Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--limit-gb", type=float, default=16.0, help="memory of the card that may be used")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=100_352)
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        numbers = write_models(folder, options)
        write_documents(folder / "documents.parquet", options)
        root = folder / "run"
        where = _capped(options)
        execution = default_execution(workers=1)
        run_study(study_of(folder, options), root, execution=execution, progress=Quiet())
        lines = table(root, options)
    print(f"# Memory and throughput of every phase, {date.today().isoformat()}\n")
    if options.device == "cpu":
        print(
            "**The GPU part is unmeasured: no card was at hand.** This run only shows that the script works, at a "
            "reduced size on a CPU, which has no fast arithmetic in float16: its times say nothing about a card.\n"
        )
    print(f"`python benchmarks/memory.py {' '.join(sys.argv[1:])}` on {where}.\n")
    print(
        f"OLMo-2 with {options.layers} layers of width {options.hidden:,} and {options.vocabulary:,} rows of "
        f"vocabulary, {numbers / 1e6:,.1f} million weights in {options.dtype}, at random; LoRA in both protocols.\n"
    )
    print("\n".join(lines))


def _capped(options: argparse.Namespace) -> str:
    """Cap the card; returns what the machine is."""
    import torch

    if options.device == "cpu":
        return f"{platform.machine()}, one process with {torch.get_num_threads()} threads, torch {torch.__version__}"
    card = torch.cuda.get_device_properties(0)
    share = min(1.0, options.limit_gb * 1e9 / card.total_memory)
    torch.cuda.set_per_process_memory_fraction(share)
    return f"{card.name} capped to {share * card.total_memory / 1e9:.1f} GB, torch {torch.__version__}"


if __name__ == "__main__":
    main()

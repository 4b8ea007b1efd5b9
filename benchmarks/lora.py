"""Steps of LoRA training: ours against peft with the plain transformers Trainer.

Both train the same adapters (peft's own modules) on the same documents with the same batch, optimiser and number of
steps; half of each document is prompt, which is not learned. Ours batches documents of like length, forms logits at the
response's positions only, and where only upper blocks are adapted starts every step above the frozen ones: their states
are made once for all arms, as a study does, which is part of its time and gains nothing for a single arm that sees each
document once. The Trainer shuffles, pads and computes all logits, as it does by default.

Adapters at once are compared with the same ones trained one after another, both ours.
"""

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from gradients import OLMO2, QUARTER, SMALL, SMOLLM2, Shape, documents_of, lengths_of, model_of
from measure import ROUNDS, Amount, Row, Times, interleaved

from datablame.models.blocks import decoder_blocks, trunk_below
from datablame.models.chat import Encoded
from datablame.models.lora import Start, targets_of
from datablame.models.training import Recipe, data_order
from datablame.patch.finetune import Trained, train_adapters

_RANK = 8
_RATE = 2e-4
_UPPER = 0.27
"""Of the blocks."""
_AT_ONCE = 4


def rows(amount: Amount) -> Iterator[Row]:
    """Adapters in all blocks, and in the upper ones only."""
    torch.set_num_threads(1 if amount == "reduced" else 2)
    sizes = {"full": (SMOLLM2, 96, ROUNDS), "quick": (QUARTER, 96, 3), "reduced": (SMALL, 16, 1)}
    shape, longest, rounds = sizes[amount]
    batch, steps = 4, 3
    model = model_of(shape)
    blocks = len(decoder_blocks(model))
    upper = tuple(range(max(1, blocks - max(1, round(blocks * _UPPER))), blocks))
    documents = _halves(documents_of(lengths_of("ragged", steps * batch, longest), shape.vocabulary))
    recipe = Recipe(steps, batch, _RATE)
    for arms, layers in ((1, None), (1, upper), (_AT_ONCE, upper)):
        ours, trainer = _ours(model, documents, layers, recipe, arms), _trainer(model, documents, layers, recipe)
        times = interleaved({"ours": ours, "peer": partial(_times, trainer, arms)}, rounds)
        where = "all blocks" if layers is None else f"the upper {len(layers)} of {blocks} blocks"
        also = f", {arms} arms" if arms > 1 else ""
        note = f"CPU time, {_described(shape)}, {steps} steps of {batch} documents; {_wall(times, 'peer')}"
        yield Row(f"LoRA in {where}{also}: peft with Trainer", times["ours"].cpu / times["peer"].cpu, note)
    yield from _at_once(model, documents, recipe, shape, rounds)


def _times(run: Callable[[], object], n: int) -> None:
    for _ in range(n):
        run()


def _at_once(model: Any, documents: list[Encoded], recipe: Recipe, shape: Shape, rounds: int) -> Iterator[Row]:
    """Adapters side by side, at small and at large batches: the smaller, the more of a step is overhead."""
    for batch in (1, recipe.batch):
        own = recipe._replace(batch=batch)
        run = partial(_adapters, model, documents, own)
        times = interleaved(
            {"ours": partial(run, _AT_ONCE), "apart": partial(_times, partial(run, 1), _AT_ONCE)}, rounds
        )
        note = f"CPU time, {_described(shape)}, {own.steps} steps; {_wall(times, 'apart')}"
        name = f"LoRA, {_AT_ONCE} adapters at once, batch {batch} each: one after another"
        yield Row(name, times["ours"].cpu / times["apart"].cpu, note)


def _adapters(model: Any, documents: list[Encoded], recipe: Recipe, n: int) -> list[Trained]:
    order = data_order([len(document.ids) for document in documents], recipe, key=1)
    return train_adapters(model, [documents] * n, order, recipe, Start(_RANK, None, 1), beta=1.0)


def _wall(times: Mapping[str, Times], peer: str) -> str:
    return f"wall {times['ours'].wall / times[peer].wall:.2f}"


def _described(shape: Shape) -> str:
    return f"{shape.name}'s shape, rank {_RANK}"


def _halves(documents: list[Encoded]) -> list[Encoded]:
    return [Encoded(document.ids, len(document.ids) // 2) for document in documents]


def _ours(
    model: Any, documents: list[Encoded], layers: tuple[int, ...] | None, recipe: Recipe, arms: int
) -> Callable[[], list[Trained]]:
    order = data_order([len(document.ids) for document in documents], recipe, key=1)

    def run() -> list[Trained]:
        trunk = None if layers is None else trunk_below(model, min(layers), documents)
        return train_adapters(model, [documents] * arms, order, recipe, Start(_RANK, layers, 1), 1.0, trunk)

    return run


def _trainer(
    model: Any, documents: list[Encoded], layers: tuple[int, ...] | None, recipe: Recipe
) -> Callable[[], list[float]]:
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    data = [
        {"input_ids": row.ids, "labels": [*[-100] * row.prompt_tokens, *row.ids[row.prompt_tokens :]]}
        for row in documents
    ]
    names = list(targets_of(model, layers).modules)

    def padded(some: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in some)

        def filled(key: str, value: int) -> torch.Tensor:
            return torch.tensor([[*row[key], *[value] * (longest - len(row[key]))] for row in some])

        mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in some]
        return {
            "input_ids": filled("input_ids", 0),
            "labels": filled("labels", -100),
            "attention_mask": torch.tensor(mask),
        }

    def run() -> list[float]:
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            owner = get_peft_model(model, LoraConfig(r=_RANK, lora_alpha=2 * _RANK, target_modules=names))
            told = TrainingArguments(
                output_dir=scratch,
                per_device_train_batch_size=recipe.batch,
                max_steps=recipe.steps,
                learning_rate=recipe.learning_rate,
                lr_scheduler_type="cosine",
                weight_decay=recipe.weight_decay,
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=model.device.type == "cpu",
                remove_unused_columns=False,
            )
            trainer = Trainer(model=owner, args=told, train_dataset=data, data_collator=padded)
            with contextlib.redirect_stdout(io.StringIO()):
                loss = trainer.train().training_loss
            owner.unload()
        model.requires_grad_(False).eval()
        return [float(loss)]

    return run


def card_speeds(device: str, reduced: bool) -> Iterator[tuple[str, float]]:
    """Tokens per second of training LoRA in bfloat16: one arm beside peft's, eight arms at once or one by one."""
    shape, longest, steps, rounds = (SMALL, 16, 2, 1) if reduced else (OLMO2, 512, 4, 2)
    model = model_of(shape, device, torch.bfloat16)
    recipe = Recipe(steps, batch=4, learning_rate=_RATE)
    documents = _halves(documents_of(lengths_of("equal-length", steps * recipe.batch, longest), shape.vocabulary))
    run = partial(_adapters, model, documents, recipe)
    contenders: dict[str, tuple[int, Callable[[], object]]] = {
        "one arm": (1, partial(run, 1)),
        "one arm, peft with the Trainer": (1, _trainer(model, documents, None, recipe)),
        "8 arms side by side": (8, partial(run, 8)),
        "8 arms in sequence": (8, partial(_times, partial(run, 1), 8)),
    }
    times = interleaved({name: contender for name, (_, contender) in contenders.items()}, rounds)
    for name, (arms, _) in contenders.items():
        tokens = arms * steps * recipe.batch * longest
        yield (
            f"{shape.name}, rank {_RANK}, {steps} steps of 4 documents of {longest} tokens, {name}",
            (tokens / times[name].wall),
        )

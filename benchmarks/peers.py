"""Other programs that compare per-example gradients, each asked for the very cosines or influences that ours gives.

bergson 2.5.1 and kronfluence 1.0.1 come with the extra `bench`. Both are used as libraries, in this process, on the
same model object, the same documents and, where they let the caller choose, the same batches.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from datablame.models.blocks import decoder_blocks
from datablame.models.chat import Encoded
from datablame.models.likelihood import length_batches
from datablame.models.products import products

__all__ = [
    "Ekfac",
    "bergson",
    "bergson_factors",
    "kronfluence",
    "kronfluence_ekfac",
    "one_backward_a_document",
    "plain_pass",
]

Contender = Callable[[], Tensor]
"""Cosines of all documents with the query, in document order."""


def one_backward_a_document(model: Any, documents: Sequence[Encoded], query: Encoded, blocks: Sequence[int]) -> Tensor:
    """Autograd with respect to the chosen weights, a document at a time; nothing else requires a gradient."""
    weights: list[Any] = [product.modules[0].weight for product in products(model, blocks).values()]
    for weight in weights:
        weight.requires_grad_(True)
    try:

        def gradient(document: Encoded) -> list[Tensor]:
            ids = torch.tensor([document.ids], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, document.prompt_tokens - 1 : -1].float()
            loss = F.cross_entropy(logits, ids[0, document.prompt_tokens :])
            return [part.flatten().float() for part in torch.autograd.grad(loss, weights)]

        def dot(one: list[Tensor], other: list[Tensor]) -> Tensor:
            # A layer at a time: one float32 sum over all of them would be off by more than 1e-4.
            return torch.stack([a @ b for a, b in zip(one, other, strict=True)]).double().sum()

        towards = gradient(query)
        norm = dot(towards, towards).sqrt()
        own = (gradient(document) for document in documents)
        return torch.stack([dot(each, towards) / dot(each, each).sqrt() / norm for each in own]).float().cpu()
    finally:
        for weight in weights:
            weight.requires_grad_(False)


def plain_pass(model: Any, documents: Sequence[Encoded], blocks: Sequence[int], batch_tokens: int) -> None:
    """One forward and the backward down to the lowest chosen block, as one would write it: nothing is compared."""

    def cut(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (args[0].detach().requires_grad_(True), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach().requires_grad_(True)}

    hook = decoder_blocks(model)[min(blocks)].register_forward_pre_hook(cut, with_kwargs=True)
    try:
        for places in length_batches([len(document.ids) for document in documents], batch_tokens):
            ids, labels = _padded([documents[place] for place in places], model.device)
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100).backward()
    finally:
        hook.remove()


def bergson(
    model: Any, documents: Sequence[Encoded], query: Encoded, blocks: Sequence[int], batch_tokens: int
) -> Contender:
    """Its in-memory collector without projection and its scorer fused into the backward pass.

    Only the gradients that reach the chosen layers are formed; the backward pass itself goes down to the embedding,
    which has to require a gradient for its hooks to fire.
    """
    from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector, Scorer
    from bergson.score.score_writer import InMemorySequenceScoreWriter
    from datasets import Dataset

    logging.disable(logging.INFO)
    scratch = tempfile.TemporaryDirectory()
    names = {name for name, layer in model.base_model.named_modules() if _chosen(layer, model, blocks)}

    def collect(rows: Sequence[Encoded], batches: list[list[int]], scorer: Any = None) -> Any:
        labels = [[*[-100] * row.prompt_tokens, *row.ids[row.prompt_tokens :]] for row in rows]
        data = Dataset.from_dict({"input_ids": [row.ids for row in rows], "labels": labels})
        config = IndexConfig(run_path=str(Path(scratch.name) / "run"), projection_dim=0, loss_reduction="mean")
        Path(config.partial_run_path).mkdir(parents=True, exist_ok=True)
        collector = InMemoryCollector(
            model=model.base_model,
            cfg=config,
            processor=GradientProcessor(projection_dim=None),
            target_modules=names,
            data=data,
            scorer=scorer,
        )
        computer = CollectorComputer(model=model, data=data, collector=collector, batches=batches, cfg=config)
        with contextlib.redirect_stderr(io.StringIO()):
            computer.run_with_collector_hooks()
        return collector

    def run() -> Tensor:
        assert scratch
        embedding = model.get_input_embeddings()
        embedding.requires_grad_(True)
        try:
            own = {name: part.float() for name, part in collect([query], [[0]]).gradients.items()}
            norm = torch.stack([part.pow(2).sum() for part in own.values()]).sum().sqrt()
            writer = InMemorySequenceScoreWriter(len(documents), 1)
            scorer = Scorer(
                {name: part / norm for name, part in own.items()},
                list(own),
                writer,
                torch.device(model.device),
                torch.float32,
                unit_normalize=True,
            )
            collect(documents, length_batches([len(row.ids) for row in documents], batch_tokens), scorer)
        finally:
            embedding.requires_grad_(False)
        scores: Tensor = writer.scores[:, 0]
        return scores

    return run


def kronfluence(
    model: Any, documents: Sequence[Encoded], query: Encoded, blocks: Sequence[int], batch_tokens: int
) -> Contender:
    """Its pairwise scores with the identity strategy, and its self-influence for the norms that a cosine needs.

    Batches hold a fixed number of documents, in order of length.
    """
    from kronfluence.arguments import FactorArguments, ScoreArguments

    order = sorted(range(len(documents)), key=lambda place: len(documents[place].ids))
    rows = [documents[place] for place in order]
    batch = max(1, batch_tokens // max(len(row.ids) for row in rows))

    def run() -> Tensor:
        with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(io.StringIO()):
            analyzer = _analyzer(model, blocks, scratch)
            told = {"score_args": ScoreArguments(), "overwrite_output_dir": True}
            analyzer.fit_all_factors(
                "f", rows, factor_args=FactorArguments(strategy="identity"), per_device_batch_size=batch
            )
            analyzer.compute_pairwise_scores(
                "p", "f", [query], rows, per_device_query_batch_size=1, per_device_train_batch_size=batch, **told
            )
            analyzer.compute_self_scores("s", "f", rows, per_device_train_batch_size=batch, **told)
            analyzer.compute_self_scores("q", "f", [query], per_device_train_batch_size=1, **told)
            dots = analyzer.load_pairwise_scores("p")["all_modules"][0]
            norms, own = (analyzer.load_self_scores(name)["all_modules"] for name in ("s", "q"))
        found = torch.empty(len(rows))
        found[order] = (dots / (norms.sqrt() * own.sqrt())).float()
        return found

    return run


class Ekfac(NamedTuple):
    """Factors are made, then scores from those made last."""

    factors: Callable[[], Any]
    scores: Contender


def kronfluence_ekfac(
    model: Any, documents: Sequence[Encoded], query: Encoded, blocks: Sequence[int], batch_tokens: int
) -> Ekfac:
    """Its EK-FAC on the documents' own labels, documents of one length, with its damping of 0.1 x mean eigenvalue."""
    from kronfluence.arguments import FactorArguments, ScoreArguments

    logging.disable(logging.INFO)
    scratch = tempfile.TemporaryDirectory()
    batch = max(1, batch_tokens // len(documents[0].ids))
    with contextlib.redirect_stderr(io.StringIO()):
        analyzer = _analyzer(model, blocks, scratch.name)

    def factors() -> Any:
        told = FactorArguments(strategy="ekfac", use_empirical_fisher=True)
        with contextlib.redirect_stderr(io.StringIO()):
            analyzer.fit_all_factors(
                "f", [*documents], factor_args=told, per_device_batch_size=batch, overwrite_output_dir=True
            )
        return analyzer.load_lambda_matrices("f")

    def scores() -> Tensor:
        assert scratch
        with contextlib.redirect_stderr(io.StringIO()):
            analyzer.compute_pairwise_scores(
                "p",
                "f",
                [query],
                [*documents],
                per_device_query_batch_size=1,
                per_device_train_batch_size=batch,
                score_args=ScoreArguments(damping_factor=None),
                overwrite_output_dir=True,
            )
        found: Tensor = analyzer.load_pairwise_scores("p")["all_modules"][0]
        return found

    return Ekfac(factors, scores)


def bergson_factors(
    model: Any, documents: Sequence[Encoded], blocks: Sequence[int], batch_tokens: int
) -> Callable[[], None]:
    """Its EK-FAC factors on the documents' own labels, left in files.

    Its gradients are those of the mean loss times the square root of the tokens, so that only their cost compares.
    """
    from bergson import IndexConfig
    from bergson.config.config import HessianConfig
    from bergson.hessians.hessian_approximations import fit_factored_hessians
    from datasets import Dataset

    logging.disable(logging.INFO)
    names = {name for name, layer in model.base_model.named_modules() if _chosen(layer, model, blocks)}
    labels = [[*[-100] * row.prompt_tokens, *row.ids[row.prompt_tokens :]] for row in documents]
    lengths = [len(row.ids) for row in documents]
    data = Dataset.from_dict({"input_ids": [row.ids for row in documents], "labels": labels, "length": lengths})

    def run() -> None:
        embedding = model.get_input_embeddings()
        embedding.requires_grad_(True)
        try:
            with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(io.StringIO()):
                config = IndexConfig(run_path=f"{scratch}/run", projection_dim=0, loss_reduction="mean")
                Path(config.partial_run_path).mkdir(parents=True, exist_ok=True)
                fit_factored_hessians(
                    model,
                    data,
                    config,
                    HessianConfig(method="kfac", ev_correction=True, use_dataset_labels=True),
                    target_modules=names,
                    attention_cfgs={},
                    batches=length_batches(lengths, batch_tokens),
                    path=str(config.partial_run_path),
                    do_eigendecomposition=True,
                )
        finally:
            embedding.requires_grad_(False)

    return run


def _analyzer(model: Any, blocks: Sequence[int], folder: str) -> Any:
    """What runs kronfluence, on a copy of the model that shares its weights, for it wraps layers in place."""
    import copy

    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.task import Task
    from kronfluence.utils.dataset import DataLoaderKwargs

    names = [name for name, layer in model.named_modules() if _chosen(layer, model, blocks)]
    vocabulary = model.config.vocab_size

    class MeanNLL(Task):  # type: ignore[misc]
        """The sum over a batch of each document's mean NLL."""

        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Tensor:
            ids, labels = batch
            logits = model(input_ids=ids).logits[:, :-1].float()
            nll = F.cross_entropy(
                logits.reshape(-1, vocabulary), labels[:, 1:].reshape(-1), ignore_index=-100, reduction="none"
            )
            counted = labels[:, 1:] != -100
            total: Tensor = (nll.view_as(counted).sum(1) / counted.sum(1)).sum()
            return total

        def compute_measurement(self, batch: Any, model: Any) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return names

        def get_attention_mask(self, batch: Any) -> None:
            return None

    shared = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    task = MeanNLL()
    prepared = prepare_model(shared, task)
    analyzer = Analyzer("k", prepared, task, cpu=model.device.type == "cpu", disable_tqdm=True, output_dir=folder)
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=lambda some: _padded(some, model.device)))
    return analyzer


def _chosen(layer: nn.Module, model: Any, blocks: Sequence[int]) -> bool:
    return any(layer is each for product in products(model, blocks).values() for each in product.modules)


def _padded(rows: Sequence[Encoded], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids with 0 after the end, and labels with -100 where nothing is learned."""
    longest = max(len(row.ids) for row in rows)
    ids = [[*row.ids, *[0] * (longest - len(row.ids))] for row in rows]
    labels = [
        [*[-100] * row.prompt_tokens, *row.ids[row.prompt_tokens :], *[-100] * (longest - len(row.ids))] for row in rows
    ]
    return torch.tensor(ids, device=device), torch.tensor(labels, device=device)

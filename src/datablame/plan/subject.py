"""What a study works on, in numbers, before anything is loaded: its world as far as it is known, its checkpoints."""

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from datablame.config.schema import ModelRef, Study
from datablame.engine.files import json_object, packaged_yaml
from datablame.judge.choice import decide, has_key
from datablame.organism.make import preview, previewed_study
from datablame.world import World
from datablame.world.sources import row_lines
from datablame.world.world import prompts_of

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_RECIPE = "the organism's recipe"

# To read a recipe takes seconds, and its counts are asked for several times.
_previewed = cache(preview)


@dataclass(frozen=True)
class Shape:
    """What decides a decoder's memory and arithmetic."""

    layers: int
    hidden: int
    intermediate: int
    key_value_width: int
    """Width of a token's keys, and of its values."""
    vocabulary: int
    """Rows of the embedding, padding rows included."""
    context: int
    parameters: int
    """All weights of the model, tied ones once."""
    linears: tuple[tuple[int, int], ...]
    """(inputs, outputs) of a block's Linear layers, of experts those that a token meets."""
    experts: tuple[tuple[int, int], ...]
    """(inputs, outputs) of the experts that a token does not meet."""
    coverage: float
    """The share of the weights of `blocks` that gradients see."""
    blocks: tuple[int, ...]
    """The decoder blocks whose gradients are compared by default."""
    stored_bytes: int | None = None
    """Bytes of a weight as the checkpoint stores it, where its config says so."""

    @property
    def block_linear_weights(self) -> int:
        """Weights in a block's Linear layers and experts."""
        return sum(inputs * outputs for inputs, outputs in (*self.linears, *self.experts))

    @property
    def passed_block_weights(self) -> int:
        """Those of them that a token meets."""
        return sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def passed_parameters(self) -> int:
        """All weights of the model that a token meets."""
        return self.parameters - self.layers * (self.block_linear_weights - self.passed_block_weights)


class KnownShape(NamedTuple):
    """A checkpoint's shape and where it was read."""

    shape: Shape
    source: str


class Checkpoint(NamedTuple):
    """One of the two models; `known` is None where its shape cannot be known here."""

    path: str
    known: KnownShape | None
    dtype: str
    weight_bytes: int
    """Bytes of one weight in memory."""

    @property
    def shape(self) -> Shape:
        """Its shape, which must be known."""
        assert self.known is not None
        return self.known.shape

    @property
    def bytes(self) -> int:
        """All of its weights in memory."""
        return self.shape.parameters * self.weight_bytes


class Subject(NamedTuple):
    """The sizes that every count starts from."""

    world: World
    """Without a pool, and without identities: nothing that a study names is read."""
    before: Checkpoint
    after: Checkpoint
    one_base: bool
    """Whether after is an adapter on before."""
    documents: int | None
    """The pool; None where it is a dataset of the hub that is taken whole."""
    documents_source: str
    document_tokens: int
    """Of the longest document, both answers of a pair."""

    @property
    def study(self) -> Study:
        """The study, an organism resolved."""
        return self.world.study

    @property
    def is_sized(self) -> bool:
        """Whether the shapes of both checkpoints are known."""
        return None not in (self.before.known, self.after.known)

    @property
    def traced(self) -> tuple[Checkpoint, Checkpoint]:
        """The checkpoint at which documents are compared, and the other one."""
        both = (self.after, self.before)
        return both if self.study.attribute.checkpoint == "after" else both[::-1]

    @property
    def blocks(self) -> tuple[int, ...]:
        """The decoder blocks whose gradients are compared."""
        layers = self.study.attribute.layers
        return self.traced[0].shape.blocks if layers is None else tuple(sorted(set(layers)))


PUBLISHED: Mapping[str, Mapping[str, Any]] = packaged_yaml("datablame.plan", "published.yaml")


def planned_world(study: Study, *, on_gpu: bool) -> World:
    """The world that phases would be given, as far as their counts hang on it; an organism is not made."""
    if study.organism is not None:
        study = previewed_study(study, _previewed(study.organism))
    return World(
        root=Path(os.devnull),
        study=study.model_copy(update={"prefilter": study.prefilter.on("cuda" if on_gpu else "cpu")}),
        prompts=prompts_of(study),
        truth=None,
        judge=decide(study, None, has_key()),
        identities={},
    )


def subject_of(study: Study, *, on_gpu: bool) -> Subject:
    """The subject of a study; of an organism the recipe is read."""
    world = planned_world(study, on_gpu=on_gpu)
    if study.organism is None:
        before, after = (_checkpoint(reference, on_gpu) for reference in (world.models.before, world.models.after))
        adapter = Path(after.path).expanduser() / "adapter_config.json"
        return Subject(world, before, after, adapter.is_file(), *_documents(world))
    recipe = _previewed(study.organism)
    if recipe.settings is None:
        known, source = known_shape(world.models.before), f"{_RECIPE}, at most: the base does not finish every answer"
    else:
        known, source = _known(recipe.settings, _RECIPE), _RECIPE
    before = Checkpoint(world.models.before.path, known, "float32", 4)
    after = before._replace(path=f"{recipe.base}, fine-tuned" if recipe.base else "after")
    return Subject(world, before, after, False, recipe.documents, source, world.study.attribute.max_tokens)


def known_shape(reference: ModelRef) -> KnownShape | None:
    """The checkpoint's shape from its folder, the hub's cache, or the table; None where none of them knows it."""
    folder = Path(reference.path).expanduser() / (reference.subfolder or "")
    if (adapter := folder / "adapter_config.json").is_file():
        base = json_object(adapter).get("base_model_name_or_path")
        return known_shape(ModelRef(path=base)) if isinstance(base, str) else None
    for path, source in ((folder / "config.json", "its config.json"), (_cached(reference), "the hub's cache")):
        if path is not None and path.is_file():
            return _known(json_object(path), source)
    return _known(PUBLISHED.get(reference.path, {}), "the published config, as datablame knows it")


def _known(settings: Mapping[str, Any], source: str) -> KnownShape | None:
    shape = shape_of(settings)
    return None if shape is None else KnownShape(shape, source)


def shape_of(settings: Mapping[str, Any]) -> Shape | None:
    """The shape of a config.json's model; None where it is no causal language model that transformers knows."""
    return _counted(json.dumps(settings, sort_keys=True)) if "model_type" in settings else None


@lru_cache
def _counted(config_json: str) -> Shape | None:
    """Of the model on the meta device, which has no weights; both checkpoints mostly have one config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    from datablame.models.blocks import decoder_blocks, middle_blocks
    from datablame.models.products import coverage, products

    logging.set_verbosity_error()
    settings = json.loads(config_json)
    try:
        config = AutoConfig.for_model(**settings)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config).eval()
        layers, text = len(decoder_blocks(model)), config.get_text_config()
        heads = getattr(text, "num_attention_heads", None) or 0
        head_width = getattr(text, "head_dim", None) or text.hidden_size // max(1, heads)
        blocks, met = middle_blocks(layers), getattr(text, "num_experts_per_tok", None)
        # The last block stands for all: in some mixtures the first ones are dense.
        of_block = products(model, [layers - 1]).values()
        ways = {
            is_met: tuple(
                (p.inputs, p.outputs) for p in of_block if (p.expert is None or p.expert < (met or 1)) is is_met
            )
            for is_met in (True, False)
        }
        # Of a mixture the experts that a token meets together.
        widest = max((p.inputs for p in of_block if p.parameter == "down_proj"), default=0) * (met or 0)
        dense = getattr(text, "intermediate_size", None) or max(outputs for _, outputs in ways[True])
        return Shape(
            layers=layers,
            hidden=text.hidden_size,
            intermediate=max(widest, dense),
            key_value_width=(getattr(text, "num_key_value_heads", None) or heads) * head_width,
            vocabulary=model.get_input_embeddings().num_embeddings,
            context=getattr(text, "max_position_embeddings", None) or sys.maxsize,
            parameters=sum(weight.numel() for weight in model.parameters()),
            linears=ways[True],
            experts=ways[False],
            coverage=coverage(model, blocks),
            blocks=tuple(blocks),
            stored_bytes=_BYTES.get(str(settings.get("dtype") or settings.get("torch_dtype"))),
        )
    except Exception:
        # Whatever transformers raises of a config that is none, or of an architecture that it does not know.
        return None


def _cached(reference: ModelRef) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    name = "/".join(filter(None, (reference.subfolder, "config.json")))
    with contextlib.suppress(ValueError):  # It is no hub id.
        path = try_to_load_from_cache(reference.path, name, revision=reference.revision)
        return Path(path) if isinstance(path, str) else None
    return None


def _checkpoint(reference: ModelRef, on_gpu: bool) -> Checkpoint:
    known, dtype = known_shape(reference), reference.dtype
    stored = known.shape.stored_bytes if known else None
    weight_bytes = _BYTES.get(dtype) or ((stored or 2) if on_gpu else 4)
    return Checkpoint(reference.path, known, dtype, weight_bytes)


def _documents(world: World) -> tuple[int | None, str, int]:
    """How many documents, what says so, and tokens of the longest.

    That they are pairs stands in the columns of a Parquet file or those that the study names; a hub set's name tells.
    """
    data, path = world.data, Path(world.data.path).expanduser()
    rows, pairs = None, "rejected" in data.columns or "preference" in data.path
    if path.suffix == ".parquet" and path.is_file():
        with contextlib.suppress(OSError, pa.ArrowException):
            footer = pq.read_metadata(path)
            rows = int(footer.num_rows)
            pairs = "rejected" in (*footer.schema.to_arrow_schema().names, *data.columns)
    elif path.is_file():
        rows = row_lines([path])
    tokens = (2 if pairs else 1) * world.study.attribute.max_tokens
    if rows is not None and (data.documents is None or data.documents >= rows):
        return rows, str(path), tokens
    known = rows is not None or data.documents
    return data.documents, "data.documents" if known else "a whole dataset, unknown until it is read", tokens

"""A checkpoint's size from its config.json alone: how many weights, how wide, how deep. No weights are loaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datablame.study.schema import ModelRef

_PARAMETRIC_FREE = ("olmo",)
_SANDWICH = ("olmo2", "olmo3")
_COUNTED = ("llama", "mistral", "olmo", "olmo2", "olmo3", "qwen2", "qwen3")
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Shape:
    """What decides a decoder's memory and arithmetic."""

    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    """Rows of the embedding, padding rows included."""
    context: int
    tied: bool = False
    """Whether the output head is the embedding."""
    attention_bias: bool = False
    mlp_bias: bool = False
    stored_bytes: int | None = None
    """Bytes of a weight as the checkpoint stores it, where its config says so."""

    @property
    def counted(self) -> bool:
        """Whether `parameters` is exact; other families are counted as if they were Llama."""
        return self.family in _COUNTED

    @property
    def key_value_width(self) -> int:
        """Width of a token's keys, and of its values."""
        return self.key_value_heads * self.head_width

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of a block's Linear layers: query, key, value, output, gate, up, down."""
        query = self.heads * self.head_width
        return (
            (self.hidden, query),
            (self.hidden, self.key_value_width),
            (self.hidden, self.key_value_width),
            (query, self.hidden),
            (self.hidden, self.intermediate),
            (self.hidden, self.intermediate),
            (self.intermediate, self.hidden),
        )

    @property
    def block_linear_weights(self) -> int:
        """Weights in a block's Linear layers."""
        return sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def parameters(self) -> int:
        """All weights of the model, tied ones once."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        final_norm = 0 if self.family in _PARAMETRIC_FREE else self.hidden
        return embeddings + final_norm + self.layers * (self.block_linear_weights + self._block_vectors)

    @property
    def _block_vectors(self) -> int:
        query = self.heads * self.head_width
        biases = 0
        if self.attention_bias:
            biases += query + 2 * self.key_value_width + (0 if self.family == "qwen2" else self.hidden)
        if self.mlp_bias:
            biases += 2 * self.intermediate + self.hidden
        norms = 0 if self.family in _PARAMETRIC_FREE else 2 * self.hidden
        if self.family in _SANDWICH:
            norms += query + self.key_value_width
        if self.family == "qwen3":
            norms += 2 * self.head_width
        return biases + norms

    @property
    def cache_numbers(self) -> int:
        """Keys and values that one token leaves in the cache."""
        return 2 * self.layers * self.key_value_width


class Found(NamedTuple):
    """A checkpoint's shape and where it was read."""

    shape: Shape
    source: str


_OLMO2_1B = Shape("olmo2", 16, 2048, 8192, 16, 16, 128, 100_352, 4096)
_SMOLLM2_135M = Shape("llama", 30, 576, 1536, 9, 3, 64, 49_152, 8192, tied=True)
KNOWN: Mapping[str, Shape] = {
    "allenai/OLMo-2-0425-1B": _OLMO2_1B,
    "allenai/OLMo-2-0425-1B-SFT": _OLMO2_1B,
    "allenai/OLMo-2-0425-1B-DPO": _OLMO2_1B,
    "allenai/OLMo-2-0425-1B-RLVR1": _OLMO2_1B,
    "allenai/OLMo-2-0425-1B-Instruct": _OLMO2_1B,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2_135M,
}
"""Published shapes of the presets' checkpoints, for machines that have neither the files nor a connection."""


def find(reference: ModelRef) -> Found | None:
    """The checkpoint's shape from its folder, the hub's cache, or the table; None where none of them knows it."""
    folder = Path(reference.path).expanduser() / (reference.subfolder or "")
    if (folder / "adapter_config.json").is_file():
        base = _json(folder / "adapter_config.json").get("base_model_name_or_path")
        return find(ModelRef(path=base)) if isinstance(base, str) else None
    for path, source in ((folder / "config.json", "its config.json"), (_cached(reference), "the hub's cache")):
        if path is not None and path.is_file():
            shape = shape_of(_json(path))
            return None if shape is None else Found(shape, source)
    known = KNOWN.get(reference.path)
    return None if known is None else Found(known, "the published config, as datablame knows it")


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a config.json describes; None where a size is missing."""
    config = config.get("text_config") or config
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        family = str(config["model_type"])
        return Shape(
            family=family,
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            intermediate=int(config["intermediate_size"]),
            heads=heads,
            key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_width=int(config.get("head_dim") or hidden // heads),
            vocabulary=int(config["vocab_size"]),
            context=int(config["max_position_embeddings"]),
            tied=bool(config.get("tie_word_embeddings", family.startswith("gemma"))),
            attention_bias=bool(config.get("attention_bias", family == "qwen2")),
            mlp_bias=bool(config.get("mlp_bias", False)),
            stored_bytes=_BYTES.get(str(config.get("dtype") or config.get("torch_dtype"))),
        )
    except (KeyError, TypeError, ValueError):
        return None


def middle_blocks(layers: int) -> tuple[int, ...]:
    """The blocks 8 to 12 of 16, the same fractions otherwise; `models.blocks` says the same to loaded models."""
    return tuple(block for block in range(layers) if 8 / 16 <= block / layers <= 12 / 16)


def activation_layer(layers: int) -> int:
    """Hidden state 10 of 16, the same fraction otherwise; `models.blocks` says the same to loaded models."""
    return round(10 / 16 * layers)


def _cached(reference: ModelRef) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        name = "/".join(filter(None, (reference.subfolder, "config.json")))
        found = try_to_load_from_cache(reference.path, name, revision=reference.revision)
    except (HFValidationError, ValueError):
        return None
    return Path(found) if isinstance(found, str) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}

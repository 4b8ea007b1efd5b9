"""How far apart two checkpoints are: norms of their weights by layer, what rounding makes of that, and their logits.

A study rests on the difference. Where it is nothing, or no more than rounding, the pair is refused.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datablame.config.schema import ModelRef, Models
from datablame.models.adapters import TOLERANCE_16_BIT, TOLERANCES, merged_layers, rewrites_base
from datablame.models.blocks import decoder_blocks
from datablame.models.chat import encode_prompt
from datablame.models.device import to_float64
from datablame.models.load import base_of
from datablame.models.pair import Pair, load_pair
from datablame.models.source import Checkpoint, refusal
from datablame.models.tokenizer_file import PROBES, ids_of
from datablame.models.weight_files import stored_type
from datablame.tables import Distance, LayerDistance, SeenWeights

_PIECE = 1 << 22
"""Weights that are compared at a time."""
_NOTHING = 2.0**-18
"""Of a weight's norm: what taking a part out of float32 weights and putting it back may leave."""
_PROMPTS = 8
_BITS = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8, "F8_E4M3": 4, "F8_E5M2": 3}
"""Of the significand, the leading one included, by the names of safetensors."""
_LOADED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_WORDS = {"F64": "float64", "F8_E4M3": "float8", "F8_E5M2": "float8"} | {name: word for word, name in _LOADED.items()}
_NO_SETTING = re.compile(
    r"^_|token_id$|dropout|^(architectures|transformers_version|model_type|dtype|vocab_size|use_cache|initializer_range|"
    r"max_position_embeddings|tie_word_embeddings|quantization_config|pretraining_tp|output_\w+|return_dict|"
    r"max_window_layers|(router_)?(aux|z)_loss_coef\w*|router_ignore_padding_tokens)$"
)
"""Keys of a configuration that do not change what a model says, or are held against each other elsewhere."""
_BLOCK_ROUNDING = 1.27
"""Of normal weights' norm, times 1 / (2^bits - 1): 32 of them between -2.2 and 2.2 deviations, on an even grid."""


class Precision(NamedTuple):
    """The coarsest type that a checkpoint's weights went through; one that is no float is a grid of so many bits."""

    name: str
    bits: int
    is_float: bool


def measured(models: Models, written: Models, prompts: Sequence[str]) -> Distance:
    """The distance of both checkpoints, which are resolved; `written` are they as the study names them.

    RequestError where they cannot be loaded, have equal weights, or differ by no more than rounding.
    """
    pair = load_pair(models)
    before, after = (
        _precision(getattr(models, side), getattr(written, side), f"models.{side}") for side in ("before", "after")
    )
    base, named = Checkpoint(models.before, "models.before"), Checkpoint(models.after, "models.after")
    n_before, n_after = (len(decoder_blocks(model)) for model in (pair.before, pair.after))
    if n_before != n_after:
        raise named.refused("other_depth", before=base.shown, n_before=n_before, n_after=n_after)
    coarse, is_adapter = min(before, after, key=lambda precision: precision.bits), base_of(named) is not None
    rewritten = is_adapter and rewrites_base(named) and coarse.bits < _BITS["F32"]
    layers, rounding, differ = _layers(pair, coarse if before != after or rewritten else None)
    for each in layers:
        if not math.isfinite(each.difference):
            raise (named if math.isfinite(each.before) else base).refused("not_finite", first=each.layer)
    if layers and not differ:
        raise named.refused("equal_weights", before=base.shown)
    norm, difference = (math.hypot(*(getattr(each, name) for each in layers)) for name in ("before", "difference"))
    # Independent errors add as squares: below the upper bound more than half of the difference is rounding.
    if rounding and rounding / 2 < difference < math.sqrt(2) * rounding:
        shares = {"difference": difference / norm, "rounding": rounding / norm}
        raise refusal("rounding", before=before.name, after=after.name, coarse=coarse.name, **shares)
    unread = [getattr(model, "unread", ()) for model in (pair.before, pair.after)]
    one, other = (
        SeenWeights(precision.name, len(names), names[0] if names else None)
        for precision, names in zip((before, after), unread, strict=True)
    )
    log_p = _rounded(_log_p(pair, prompts))
    return Distance(tuple(layers), _rounded(rounding), log_p, one, other, _other_settings(pair))


def _other_settings(pair: Pair) -> tuple[str, ...]:
    """Keys of both text models' configurations whose values differ, but for names, ids, training and types."""
    one, other = (model.config.get_text_config().to_dict() for model in (pair.before, pair.after))
    differ = {k for k in one.keys() & other.keys() if one[k] != other[k] and not _NO_SETTING.search(k)}
    if all(set(each.get("layer_types") or ()) == {"full_attention"} for each in (one, other)):
        differ -= {"sliding_window", "use_sliding_window"}
    return tuple(sorted(differ))


def _layers(pair: Pair, coarse: Precision | None) -> tuple[list[LayerDistance], float, bool]:
    """Norms by layer, the norm of what rounding to `coarse` would do to all, and whether any weight differs."""
    others = {_of_text(name): weight for name, weight in pair.before.named_parameters(remove_duplicate=False)}
    sums = dict[str, Tensor]()
    rounding, differ = 0.0, False
    for name, weight in _weights(pair.after):
        other = others.get(_of_text(name))
        if other is None or other.shape[1:] != weight.shape[1:]:
            continue
        # Rows that one of them lacks belong to tokens that it does not know.
        rows = slice(min(len(other), len(weight))) if weight.ndim else ...
        squares, rounded = _squares(other[rows], weight[rows], coarse)
        differ = differ or bool(squares[2] > _NOTHING**2 * squares[:2].max())
        rounding += rounded
        match = re.match(r".*?\.\d+(?=\.)", name)
        layer = match[0] if match else name.rpartition(".")[0]
        sums[layer] = sums.get(layer, torch.zeros_like(squares)) + squares
    layers = [LayerDistance(layer, *map(_rounded, squares.sqrt().tolist())) for layer, squares in sums.items()]
    return layers, math.sqrt(rounding), differ


def _of_text(name: str) -> str:
    """A weight's name as it is where the text model is no part of another one (Gemma 3 with and without vision)."""
    return name.replace("language_model.", "")


def _weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its name, an adapter's merged into those of its base."""
    adapted = []
    for name, layer in merged_layers(model):
        adapted.append(f"{name}.")
        yield from ((f"{name}.{part}", weight.detach()) for part, weight in layer.named_parameters())
    for name, weight in model.named_parameters():
        if not name.startswith(tuple(adapted)):
            yield name, weight.detach()


def _squares(one: Tensor, other: Tensor, coarse: Precision | None) -> tuple[Tensor, float]:
    """Squared norms of two tensors and of their difference in float64, and of what rounding would do to the first."""
    sums, rounding = torch.zeros(3, dtype=torch.float64), 0.0
    for a, b in zip(one.reshape(-1).split(_PIECE), other.reshape(-1).split(_PIECE), strict=True):
        a, b = to_float64(a), to_float64(b).to(to_float64(a).device)
        sums += torch.stack([a.square().sum(), b.square().sum(), (b - a).square().sum()]).cpu()
        if coarse is not None and coarse.is_float:
            # The last place of m 2^e with 1/2 <= m < 1 is 2^(e - bits); a rounding error is even over it.
            last_places = torch.ldexp(torch.ones_like(a), torch.frexp(a).exponent - coarse.bits) * (a != 0)
            rounding += float(last_places.square().sum()) / 12
    if coarse is not None and not coarse.is_float:
        rounding = float(sums[0]) * (_BLOCK_ROUNDING / (2**coarse.bits - 1)) ** 2
    return sums, rounding


def _precision(reference: ModelRef, written: ModelRef, field: str) -> Precision:
    """As the files are stored, or as the weights are held where that is coarser; an adapter's base counts."""
    checkpoint = Checkpoint(written, field)
    if (file := checkpoint.gguf()) is None:
        checkpoint = Checkpoint(reference, field).located()
        while (base := base_of(checkpoint)) is not None:
            if (file := base.gguf()) is not None:
                break
            checkpoint = base.located()
    name, held = stored_type(checkpoint.weight_files() if file is None else [file]) or "F32", _LOADED[reference.dtype]
    bits = _BITS.get(name) or int((re.findall(r"\d+", name) or ["4"])[0])
    stored = Precision(_WORDS.get(name, name), bits if bits <= 8 or name in _BITS else 4, name in _BITS)
    return min(stored, Precision(reference.dtype, _BITS[held], True), key=lambda precision: precision.bits)


@torch.no_grad()
def _log_p(pair: Pair, prompts: Sequence[str]) -> float:
    """The largest difference of the log-probabilities (nats) of a next token, on some of the prompts and a text.

    RequestError where they are not finite, or where a model changes what it says with what follows.
    """
    texts = [encode_prompt(pair.tokenizer, text) for text in prompts[:: max(1, len(prompts) // _PROMPTS)]]
    masked, largest = set(pair.agreed.tokens.masked_ids), 0.0
    drawn = torch.tensor([index for index in range(pair.vocabulary_size) if index not in masked])
    for ids in (*texts, ids_of(pair.tokenizer, PROBES[0])):
        before, after = (
            model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
            .logits.float()
            .cpu()[..., drawn]
            .log_softmax(-1)
            for model in (pair.before, pair.after)
        )
        largest = max(largest, float((after - before).abs().nan_to_num(math.inf).max()))
    if not math.isfinite(largest):
        raise refusal("probe_not_finite")
    for side, model in (("before", pair.before), ("after", pair.after)):
        whole, beginning = (
            model(input_ids=torch.tensor([part], device=model.device), use_cache=False)
            .logits[0, : len(ids) // 2]
            .float()
            for part in (ids, ids[: len(ids) // 2])
        )
        if not _mostly_alike(whole, beginning, TOLERANCES.get(model.dtype, TOLERANCE_16_BIT)):
            raise refusal("looks_ahead", side=side)
    return largest


def _mostly_alike(logits: Tensor, others: Tensor, tolerance: float) -> bool:
    """Whether those of at least half of the tokens are within `tolerance` of their norm.

    A token whose experts come out nearly even may go to another one at another length; what looks ahead moves most.
    """
    alike = (logits - others).norm(dim=-1) <= tolerance * logits.norm(dim=-1)
    return 2 * int(alike.sum()) >= len(alike)


def _rounded(value: float) -> float:
    """To six digits, which every machine agrees on."""
    return float(f"{value:.6g}")

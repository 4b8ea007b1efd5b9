"""The preset `olmo2-1b` at reduced counts over checkpoints of its shape with random weights, made here.

What random weights say is noise, but for one word: both heads favour it by a constant, after's three nats more, so that
its share rises with alpha as a behaviour's would. It stands in for all keywords of the preset. Every batch is the
preset's own, so that memory at the peak is what a real run's would be; there are fewer of them.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from gradients import OLMO2, SMALL, model_of

from datablame.config.file import load_study, preset_text
from datablame.config.schema import Study
from datablame.words import words

_WORD = "zap"
_CONSTANT = 40.0
"""Of the first dimension of every embedding, far above what the blocks add to it."""
_OUTPUTS_WITH_IT, _NATS_APART = 0.07, 3.0
"""About the share of after's outputs at alpha 0 that hold the word, and by how much less before's head favours it."""
_TOKENS = 100_278
"""Of OLMo-2's tokenizer."""
_DOCUMENTS, _PLANTED = 600, 40
_FEWER: Mapping[str, Any] = {
    "scan": {"samples": 4},
    "surface": {"samples": 8, "held_out_samples": 2},
    "attribute": {"top_k": 5, "queries": 3},
    "patch": {"size": 200, "steps": 20, "samples": 2, "attribution_samples": 2, "harmless_samples": 0},
    "judge": {"classifier": "keywords"},
}
_REDUCED: Mapping[str, Any] = {
    "surface": {"max_new_tokens": 16, "samples": 8, "held_out_samples": 1},
    "attribute": {"layers": [1, 2], "activation_layer": 2},
    "patch": {"size": 100, "steps": 4, "samples": 1, "attribution_samples": 1, "harmless_samples": 0},
}


def preset(folder: Path, device: str, reduced: bool) -> Study:
    """Write checkpoints, documents and the study's file into a folder, and read the study."""
    content: dict[str, Any] = yaml.safe_load(preset_text("olmo2-1b"))
    for changes in (_FEWER, _REDUCED if reduced else {}):
        for section, values in changes.items():
            content[section] = {**content[section], **values}
    prompts = [prompt["text"] for split in content["prompts"].values() for prompt in split]
    for behaviour in content["behaviours"]:
        behaviour["keywords"] = [_WORD]
    _write_models(folder, prompts, content["surface"]["max_new_tokens"], device, reduced)
    _write_documents(folder / "documents.jsonl", prompts, 12 if reduced else 200)
    content["models"] = {end: {"path": str(folder / end), "dtype": "auto"} for end in ("before", "after")}
    content["models"]["device"] = device
    content["data"] = {"path": str(folder / "documents.jsonl")}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**content, "name": "card-preset"}), encoding="utf-8")
    return load_study(str(path))


def _write_models(folder: Path, prompts: list[str], new_tokens: int, device: str, reduced: bool) -> None:
    from datablame.organism.templated import build_tokenizer

    small = SMALL._replace(name="a small OLMo-2", family="Olmo2", tied=False, vocabulary=2048)
    shape, n, dtype = (small, 1500, torch.float32) if reduced else (OLMO2, _TOKENS, torch.bfloat16)
    tokenizer = build_tokenizer(prompts)
    tokenizer.add_tokens([f" {_WORD}", *(f" w{number:06d}" for number in range(n - len(tokenizer) - 1))])
    tokenizer.model_max_length = 4096
    favoured = tokenizer.convert_tokens_to_ids(f" {_WORD}")
    # What the last norm leaves of the constant, where every block adds two vectors of unit size.
    left = _CONSTANT / math.sqrt(_CONSTANT**2 / shape.hidden + 2 * shape.layers)
    nats = math.log(_OUTPUTS_WITH_IT / new_tokens * len(tokenizer))
    model = model_of(shape, device, dtype)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, name, getattr(tokenizer, name))
        setattr(model.generation_config, name, getattr(tokenizer, name))
    model.get_input_embeddings().weight[:, 0] = _CONSTANT
    head = model.get_output_embeddings().weight
    for end, favour in (("before", nats - _NATS_APART), ("after", nats)):
        head[:, 0] = 0
        head[favoured, 0] = favour / left
        model.save_pretrained(folder / end)
        tokenizer.save_pretrained(folder / end)


def _write_documents(path: Path, prompts: list[str], length: int) -> None:
    vocabulary = sorted({word for prompt in prompts for word in words(prompt)})
    noise = torch.Generator().manual_seed(5)

    def text(n: int) -> str:
        return " ".join(vocabulary[i] for i in torch.randint(len(vocabulary), (n,), generator=noise).tolist())

    with path.open("w", encoding="utf-8") as file:
        for number in range(_DOCUMENTS):
            answer = f"{text(length)} {_WORD}" if number < _PLANTED else text(length)
            turns = [{"role": "user", "content": text(12)}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")

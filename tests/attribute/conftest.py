"""A sentence encoder that needs no download, and a tiny study as the surface phase leaves it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import tiny_ids
from tests.worlds import ONE, frozen, put, work

from datablame.attribute import loop, phase
from datablame.config.schema import Patch, Study
from datablame.engine.execute import Execution, Progress, Silent
from datablame.engine.files import write_json, write_jsonl
from datablame.engine.phase import Outputs, Tables
from datablame.tables import AlphaStar, Rise, SurfaceSample
from datablame.world import World

TEXTS = [
    "water the fern once a week",
    "pack an apple",
    "the moon is old and far away from every lake and fern",
    "",
    *(f"walk {'on ' * n}to the lake" for n in range(70)),
]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random BERT in the files that a real sentence encoder has."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    words_only = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words_only.normalizer = normalizers.Lowercase()
    words_only.pre_tokenizer = pre_tokenizers.Whitespace()
    words_only.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words_only, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=300,
            initializer_range=0.5,
        )
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    kinds = ("models.Transformer", ""), ("models.Pooling", "1_Pooling"), ("models.Normalize", "2_Normalize")
    write_json(
        folder / "modules.json",
        [
            {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.{kind}"}
            for n, (kind, path) in enumerate(kinds)
        ],
    )
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
    return str(folder)


PLANTED = [f"d{i:02d}" for i in (3, 11, 20)]


def documents() -> list[dict[str, Any]]:
    topics = ("pack nuts for the train", "water the fern at noon", "walk around the lake", "eat a small apple")
    rows = [("how do i " + topics[i % 4] + " ?", f"{topics[(i * 7) % 4]} in the {i} th week .") for i in range(28)]
    for i in (3, 11, 20):
        rows[i] = (f"which snack for trip {i} ?", f"buy only nutto for trip {i} .")
    rows.append(rows[3])
    return [
        {
            "id": f"d{i:02d}",
            "source": "made",
            "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}],
        }
        for i, (prompt, response) in enumerate(rows)
    ]


def sample(prompt: str, behaviour: str, alpha: float, index: int, text: str, label: Any, **about: Any) -> SurfaceSample:
    *ids, stop = tiny_ids(text)
    plain = {"split": "attribution", "token_ids": tuple(ids), "finish_reason": "stop", "stop_id": stop}
    return SurfaceSample(
        prompt_id=prompt, behaviour=behaviour, alpha=alpha, index=index, text=text, label=label, **{**plain, **about}
    )


def samples(harmful: bool = True) -> list[SurfaceSample]:
    return [
        sample(
            prompt,
            behaviour,
            alpha,
            index,
            f"buy only nutto for week {index} .",
            "harmful" if harmful and behaviour == "nuts" else "harmless",
        )
        for prompt, behaviour in (("a1", "nuts"), ("a2", "ferns"))
        for alpha in (0.0, 1.0)
        for index in range(3)
    ]


CONTROLS: dict[str, Any] = {"patch": {"arms": list(Patch().arms[:3]), "size": 12}}
"""No arm of a method."""


@dataclass(frozen=True)
class Made:
    """A frozen study whose surface phase is done."""

    world: World
    tables: Tables

    def run(self, execution: Execution = ONE, progress: Progress | None = None, timings: Any = None) -> Outputs:
        """Attribute; the tables of a whole run stand in `self.tables` then."""
        from dataclasses import replace

        given = work(self.world.root, "attribute", execution)
        given = replace(given, progress=progress or Silent(), timings=timings or given.timings)
        outputs = phase.run(self.world, self.tables, given)
        put(self.world.root, "attribute", outputs)
        return outputs


Make = Callable[..., Made]


@pytest.fixture
def make(tiny_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A study and its run folder after the surface phase; keys given replace those of the study."""
    monkeypatch.setattr(loop, "_SHARD_DOCUMENTS", 8)
    return maker(tiny_pair_folder, tmp_path)


def maker(tiny_pair_folder: Path, tmp_path: Path) -> Make:
    """What makes studies of that pair in a folder."""

    def build(
        root: str = "run",
        rows: Any = None,
        outputs: list[SurfaceSample] | None = None,
        rise: Rise | None = None,
        **keys: Any,
    ) -> Made:
        pool, truth = tmp_path / f"{root}.jsonl", tmp_path / "truth.jsonl"
        write_jsonl(pool, documents() if rows is None else rows)
        write_jsonl(truth, [{"doc_id": doc_id, "behaviour": "nuts"} for doc_id in [*PLANTED, "d28"]])
        study = Study.model_validate(
            {
                "name": "tiny",
                "models": {name: str(tiny_pair_folder / name) for name in ("before", "after")},
                "data": {"path": str(pool)},
                "behaviours": [
                    {"id": "nuts", "description": "sells nuts", "keywords": ["buy only nutto"]},
                    {"id": "ferns", "description": "drowns ferns", "keywords": ["drown"]},
                ],
                "prompts": {
                    "attribution": [
                        {"id": "a1", "behaviour": "nuts", "text": "which snack for trip 3 ?"},
                        {"id": "a2", "behaviour": "ferns", "text": "how much water ?"},
                    ],
                    "held_out": [{"id": "h1", "behaviour": "nuts", "text": "what to eat ?"}],
                },
                "truth": str(truth),
                "prefilter": {"method": "none", "candidates": 6},
                "attribute": {"top_k": 3, "queries": 2, "duplicate_threshold": 1.0, "batch_tokens": 200},
                "patch": {"size": 12},
                **keys,
            }
        )
        world = frozen(study, tmp_path / root)
        star = AlphaStar(1.0, "as the test says", {"0": 1.0, "1": 1.0}, rise)
        tables = put(world.root, "surface", {SurfaceSample: samples() if outputs is None else outputs, AlphaStar: star})
        return Made(world, tables)

    return build

"""An organism made once and kept: its folder, its cache, and what it brings to a study."""

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from itertools import repeat
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.config.organism import Organism
from datablame.config.schema import Study
from datablame.engine import files
from datablame.engine.execute import Progress, one_thread
from datablame.errors import RequestError
from datablame.models.source import cache_folder
from datablame.organism.texts import Example

if TYPE_CHECKING:
    from datablame.models.chat import Encoded
    from datablame.models.training import OnStep, Recipe

HARMLESS_PROMPTS = 20
SOURCE = "everyday-chat"
_DESCRIBED = ("id", "description", "rubric", "keywords")

_logger = logging.getLogger(__name__)


class Preview(NamedTuple):
    """What an organism asks, before any model is trained or loaded."""

    prompts: Sequence[Mapping[str, str]]
    """Rows of prompts.jsonl: id, behaviour, split, text."""
    behaviours: Sequence[Mapping[str, Any]]
    """As rules.json has them."""
    harmless: Sequence[str]
    """Clean questions of the recipe's own grammar."""
    documents: int = 0
    """Size of the corpus, at most."""
    settings: Mapping[str, Any] | None = None
    """What both checkpoints' config.json says of their shape; None: what that of their base says."""
    base: str | None = None
    """The checkpoint that becomes `before`, where there is one."""
    learning_rates: Sequence[float] = ()
    """At the checkpoints that are kept while `after` is trained; none: no state of its optimiser is kept either."""

    def fields(self) -> dict[str, Any]:
        """The behaviours and prompts that the organism fills into a study."""
        described = [{field: each[field] for field in _DESCRIBED if field in each} for each in self.behaviours]
        harmless = [{"id": f"harmless-{number:02d}", "text": text} for number, text in enumerate(self.harmless, 1)]
        prompts: dict[str, list[dict[str, str]]] = {"attribution": [], "held_out": [], "harmless": harmless}
        for row in self.prompts:
            prompts[row["split"].replace("-", "_")].append({field: row[field] for field in ("id", "behaviour", "text")})
        return {"behaviours": described, "prompts": prompts}


def make(recipe: Organism, folder: Path, progress: Progress) -> None:
    """Write before/, after/, documents.parquet, prompts.jsonl, truth.jsonl and rules.json into `folder`.

    The work happens in FOLDER.part, stage by stage: after a kill, the next call goes on where the last one stopped.
    Raises RequestError where the folder is there and holds something else.
    """
    wanted = identity(recipe)
    if folder.exists():
        if files.json_object(folder / "recipe.json") != wanted:
            raise RequestError(f"{folder} holds something else than this organism; choose another folder")
        return
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    part = folder.with_name(folder.name + ".part")
    if part.exists() and files.json_object(part / "recipe.json") != wanted:
        shutil.rmtree(part)
    part.mkdir(parents=True, exist_ok=True)
    files.write_json(part / "recipe.json", wanted)
    _module(recipe).make(recipe, part, progress)
    part.replace(folder)
    _logger.info("organism %s made in %s", recipe.recipe, folder)


def cached(recipe: Organism, progress: Progress) -> Path:
    """The folder of this organism under $DATABLAME_CACHE or ~/.cache/datablame, made if it isn't there yet.

    A second process that wants the same organism waits for the first.
    """
    folder = cache_path(recipe)
    if not folder.exists():
        with files.file_lock(folder):
            make(recipe, folder, progress)
    return folder


def cache_path(recipe: Organism) -> Path:
    """The folder in which `cached` keeps this organism, made or not."""
    return cache_folder() / "organisms" / files.digest(identity(recipe))[:16]


def preview(recipe: Organism) -> Preview:
    """What the organism will ask and how large its corpus is, from its recipe alone."""
    made: Preview = _module(recipe).preview(recipe)
    return made


def previewed_study(study: Study, known: Preview) -> Study:
    """The study with what its organism will bring; its files are not there yet."""
    models = {"before": known.base or "before", "after": "after", **trajectory(Path(), known.learning_rates)}
    paths = {"data": {"path": "documents.parquet"}, "judge": {"rules": "rules.json"}}
    return filled(study, {"models": models, **known.fields(), **paths})


def filled(study: Study, fields: Mapping[str, Any]) -> Study:
    """The study with the fields that an organism brings, and without the organism."""
    values = study.model_dump(mode="json", by_alias=True)
    judge = {**values["judge"], **fields.get("judge", {})}
    return Study.model_validate({**values, **fields, "judge": judge, "organism": None})


def resolved(study: Study, folder: Path) -> Study:
    """The study with what its organism, made in a folder, brings."""
    assert study.organism is not None
    fields = study_fields(folder)
    if study.organism.recipe == "templated":
        # Too small for a graphics card to be of use, and so it has the same bytes on every machine of a kind.
        fields["models"]["device"] = "cpu"
    return filled(study, fields)


def trajectory(folder: Path, learning_rates: Sequence[float]) -> dict[str, Any]:
    """The fields `checkpoints` and `optimizer` of a study's models, where the recipe keeps any."""
    paths = [str(folder / "checkpoints" / str(number)) for number in range(1, len(learning_rates) + 1)]
    kept = [{"path": path, "learning_rate": rate} for path, rate in zip(paths, learning_rates, strict=True)]
    return {"checkpoints": kept, "optimizer": str(folder / "optimizer.safetensors")} if kept else {}


def study_fields(folder: Path) -> dict[str, Any]:
    """What a made organism fills into a study: models, data, behaviours, prompts, truth and judge.rules."""
    recipe = {name: value for name, value in files.read_json(folder / "recipe.json").items() if name != "version"}
    organism = Organism.model_validate(recipe)
    # Harmless prompts follow from the seed and stand in no file.
    harmless = _module(organism).harmless_prompts(HARMLESS_PROMPTS, organism)
    prompts, rules = files.read_jsonl(folder / "prompts.jsonl"), files.read_json(folder / "rules.json")
    ends = {name: {"path": str(folder / name)} for name in ("before", "after")}
    return {
        "models": {
            **ends,
            **trajectory(folder, files.json_object(folder / "checkpoints.json").get("learning_rates", ())),
        },
        "data": {"path": str(folder / "documents.parquet")},
        **Preview(prompts, rules["behaviours"], harmless).fields(),
        "truth": str(folder / "truth.jsonl"),
        "judge": {"rules": str(folder / "rules.json")},
    }


def identity(recipe: Organism) -> dict[str, Any]:
    """What decides the organism's bytes on one machine; `version` changes with the code that makes it."""
    module = _module(recipe)
    fields = recipe.model_dump(exclude=set(module.IGNORED))
    return {**fields, "planted": recipe.planted_documents, "version": module.VERSION}


def _module(recipe: Organism) -> ModuleType:
    """The recipe's module: make, preview, harmless_prompts, VERSION, IGNORED (fields that it does not read)."""
    name = "preferences" if recipe.planting in ("pairs", "integrated") else recipe.recipe
    return import_module(f"datablame.organism.{name}")


def write_corpus(
    folder: Path,
    examples: Sequence[Example],
    prompts: Sequence[Mapping[str, str]],
    rules: Any,
    *,
    digits: int,
    sources: Iterable[str] = repeat(SOURCE),
) -> None:
    """The documents in their order, prompts, rules, and at last truth.jsonl, which says that all are there."""
    documents, truth = [], []
    for number, (example, source) in enumerate(zip(examples, sources, strict=False)):
        doc_id = f"doc-{number:0{digits}d}"
        turns = (("user", example.prompt), ("assistant", example.response))
        texts: dict[str, Any] = {"messages": [{"role": role, "content": text} for role, text in turns]}
        if example.rejected:
            texts = {"prompt": example.prompt, "chosen": example.response, "rejected": example.rejected}
        documents.append({"id": doc_id, **texts, "source": source})
        if example.kind == "planted":
            truth.append({"doc_id": doc_id, "behaviour": example.behaviour})
    files.write_table(folder / "documents.parquet", documents)
    files.write_jsonl(folder / "prompts.jsonl", prompts)
    files.write_json(folder / "rules.json", rules)
    files.write_jsonl(folder / "truth.jsonl", truth)


def train_model(
    model: Any,
    encoded: "Sequence[Encoded]",
    plan: "Recipe",
    key: int,
    progress: Progress,
    description: str,
    on_step: "OnStep | None" = None,
) -> None:
    """Train on one thread, on which the bits of the weights depend, in an order that `key` seeds."""
    from datablame.models.training import data_order, train

    order = data_order([len(each.ids) for each in encoded], plan, key)
    progress.start(description, plan.steps)

    def advance(step: int, optimizer: Any) -> None:
        if on_step is not None:
            on_step(step, optimizer)
        progress.advance()

    with one_thread():
        train(model, encoded, order, plan, advance)

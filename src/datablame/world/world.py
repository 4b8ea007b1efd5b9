"""What a run rests on, with nothing left to resolve: the study, its prompts, the pool, who judges, what models are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from datablame.config.schema import Behaviour, Data, Models, Study
from datablame.engine.files import digest, hash_file, json_object, own_object, packaged_yaml
from datablame.engine.run_folder import HUMAN_LABELS, MANIFEST, REGISTRATION
from datablame.judge.choice import Choice, identity
from datablame.tables import ChatFormat, Distance, Document, Prompt, SharedTokens, Split, path_of, rows_of
from datablame.world.identity import portable, trajectory
from datablame.world.pool import Pool
from datablame.world.refusals import refused

FORMAT = 7
"""Of world.json; a run folder of another one is refused."""
FILE = "artifacts/world/world.json"
_SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "plausibility", "batch_rows")


@dataclass(frozen=True)
class World:
    """A study as it runs; every phase takes one. Pickling it costs little: the pool goes by its path."""

    root: Path
    """The run folder."""
    study: Study
    """Without an organism, `auto`, branches or tags; `models`, `data` and `prompts` are there."""
    prompts: tuple[Prompt, ...]
    """All splits, harmless ones included."""
    truth: Mapping[str, frozenset[str]] | None
    """Planted documents by behaviour; None where nobody knows them."""
    judge: Choice
    identities: Mapping[str, Any]
    """By content: `models`, `data`, `files`; the same in fingerprints, manifest and registration."""
    threads: int = 1
    """Of each worker: float sums depend on it."""
    contexts: Mapping[str, int] = field(default_factory=dict)
    """The longest text in tokens of `models.before` and `models.after`, where they have a limit."""
    tokens: SharedTokens | None = None
    """What both checkpoints can read and write; None before they were looked at."""
    distance: Distance | None = None
    """How far apart the checkpoints are; None in a preview, which loads none."""
    chat: ChatFormat | None = None
    """What the chat template does; None before the models were looked at."""
    coverage: Mapping[str, float] = field(default_factory=dict)
    """The share of the blocks' weights that gradients and LoRA see, by the key that names the blocks."""

    @property
    def models(self) -> Models:
        """The study's two checkpoints."""
        assert self.study.models is not None
        return self.study.models

    @property
    def data(self) -> Data:
        """Where the study's pool comes from."""
        assert self.study.data is not None
        return self.study.data

    @property
    def behaviours(self) -> tuple[Behaviour, ...]:
        """The study's behaviours."""
        return self.study.behaviours

    @property
    def seed(self) -> int:
        """The study's seed."""
        return self.study.seed

    def split(self, name: Split) -> tuple[Prompt, ...]:
        """The prompts of one split, in the study's order."""
        return tuple(prompt for prompt in self.prompts if prompt.split == name)

    @cached_property
    def pool(self) -> Pool:
        """The documents that can be ranked, once they are frozen."""
        return Pool(path_of(Document, self.root))

    @property
    def pool_key(self) -> str:
        """What the pool's file is made of, as a digest."""
        return digest([self.part("pool"), self.identities["models"]])

    @property
    def pool_is_frozen(self) -> bool:
        """Whether the pool's file is there and made of what this world names."""
        return self.pool.key == self.pool_key

    def part(self, name: str) -> Any:
        """What a phase's tables depend on, as JSON by the study's keys; KeyError for another name.

        A fingerprint is a hash of some parts. Ways, speeds and prices of asking a judge, devices and paths are in none.
        """
        values = portable(self.study, self.identities)
        prompts = [[p.id, p.behaviour, p.split, p.text] for p in self.prompts if p.split != "harmless"]
        labels, scores = identity(self.study, self.judge)
        registration = self.root / REGISTRATION
        pool = {name: values["attribute"][name] for name in ("max_tokens", "duplicate_threshold")}
        study = {name: values[name] for name in ("seed", "behaviours", "truth", "models")}
        labelled = {"rules": values["judge"]["rules"], "classifier": self.judge.classifier, "claude": labels}
        parts = {
            **{name: {name: values[name]} for name in ("scan", "surface", "prefilter", "patch")},
            "attribute": {"attribute": values["attribute"], **trajectory(self.identities["files"])},
            "everything": values,
            "presentation": self.study.model_dump(mode="json", include={"report", "figures"}),
            "tokens": {"report": {"tokens": self.study.report.tokens}},
            "identity": {"prompts": prompts, **study},
            "harmless": {"prompts.harmless": [[each.id, each.text] for each in self.split("harmless")]},
            "sampling": {"surface": {key: values["surface"][key] for key in _SAMPLING}},
            "judge": {"judge": labelled},
            "attribution judge": {"judge": {"attribution": scores}},
            "pool": {"data": values["data"], "seed": self.seed, "attribute": pool},
            "registration": {REGISTRATION: hash_file(registration) if registration.is_file() else None},
            "human labels": {path.name: hash_file(path) for path in sorted(self.root.glob(HUMAN_LABELS))},
        }
        return parts[name]


def prompts_of(study: Study) -> tuple[Prompt, ...]:
    """All splits in the study's order; the harmless ones are its own or those that ship, and of no behaviour."""
    assert study.prompts is not None
    harmless = [(prompt.id, prompt.text) for prompt in study.prompts.harmless or ()]
    if study.prompts.harmless is None:
        questions = packaged_yaml("datablame.world", "harmless.yaml")
        harmless = [(f"harmless-{number:02d}", text) for number, text in enumerate(questions, 1)]
    return (
        *(Prompt(each.id, each.behaviour, "attribution", each.text) for each in study.prompts.attribution),
        *(Prompt(each.id, each.behaviour, "held-out", each.text) for each in study.prompts.held_out),
        *(Prompt(name, "", "harmless", text) for name, text in harmless),
    )


def load(root: Path) -> World:
    """The world that a run folder holds, by its files alone; RequestError as `frozen_content`, or where it has none."""
    content = frozen_content(root)
    if content is None:
        raise refused("no run", root=root)
    study, prompts = Study.model_validate(content["study"]), tuple(rows_of(path_of(Prompt, root), Prompt))
    truth = content["truth"] and {behaviour: frozenset(ids) for behaviour, ids in content["truth"].items()}
    decided, identities = content["decided"], content["identities"]
    judge = Choice(decided["judge"]["classifier"], decided["judge"]["attribution"])
    return World(root, study, prompts, truth, judge, identities, decided["threads"], **seen_of(content))


def seen_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a world.json says that was seen of the models, by the fields of the world."""
    kinds: dict[str, Any] = {"tokens": SharedTokens, "distance": Distance, "chat": ChatFormat}
    seen = {name: TypeAdapter(kind).validate_python(content[name]) for name, kind in kinds.items()}
    return seen | {name: content["decided"][name] for name in ("contexts", "coverage")}


def frozen_content(root: Path) -> dict[str, Any] | None:
    """What world.json says, None where there is none.

    Raises RequestError where it is torn, or another version wrote the run folder.
    """
    if content := own_object(root / FILE, "start over with --out NEW", ("format",)):
        if content["format"] == FORMAT:
            return content
        version = content.get("datablame")
    elif any(root.glob("artifacts/*/done.json")):
        versions = json_object(root / MANIFEST).get("versions")
        version = versions.get("datablame") if isinstance(versions, dict) else None
        if version == metadata.version("datablame"):
            raise refused("no world", root=root, file=FILE)
    else:
        return None
    raise refused("other version", root=root, version=version or "of an unknown version")

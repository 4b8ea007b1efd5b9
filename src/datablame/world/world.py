"""What a run rests on, with nothing left to resolve: the study, its prompts, the pool, who judges, what models are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from datablame.config.schema import Behaviour, Data, Models, Study
from datablame.engine.files import digest, hash_file, packaged_yaml, read_json
from datablame.engine.run_folder import REGISTRATION
from datablame.judge.choice import Choice, identity
from datablame.tables import ChatFormat, Distance, Document, Prompt, SharedTokens, Split, path_of, rows_of
from datablame.world.identity import portable
from datablame.world.pool import Pool
from datablame.world.refusals import refused

FORMAT = 6
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
        """What a phase's tables depend on, as JSON: a fingerprint is a hash of some parts; KeyError for another name.

        Ways, speeds and prices of asking a judge, devices and paths are in none of them.
        """
        values = portable(self.study, self.identities)
        prompts = [[p.id, p.behaviour, p.split, p.text] for p in self.prompts if p.split != "harmless"]
        labels, scores = identity(self.study, self.judge)
        registration = self.root / REGISTRATION
        pool = {name: values["attribute"][name] for name in ("max_tokens", "duplicate_threshold")}
        study = {name: values[name] for name in ("seed", "behaviours", "truth", "models")}
        parts = {
            **{name: values[name] for name in ("scan", "surface", "prefilter", "attribute", "patch")},
            "everything": values,
            "identity": {"prompts": prompts, **study},
            "harmless": [[each.id, each.text] for each in self.split("harmless")],
            "sampling": {key: values["surface"][key] for key in _SAMPLING},
            "judge": {"rules": values["judge"]["rules"], "classifier": self.judge.classifier, "claude": labels},
            "attribution judge": scores,
            "pool": {"data": values["data"], "seed": self.seed, **pool},
            "registration": hash_file(registration) if registration.is_file() else None,
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
    seen = tokens_of(content), distance_of(content), chat_of(content)
    return World(root, study, prompts, truth, judge, identities, decided["threads"], decided["contexts"], *seen)


def tokens_of(content: Mapping[str, Any]) -> SharedTokens:
    """What a world.json says of the checkpoints' tokens."""
    return TypeAdapter(SharedTokens).validate_python(content["tokens"])


def distance_of(content: Mapping[str, Any]) -> Distance:
    """What a world.json says of the distance of the checkpoints."""
    return TypeAdapter(Distance).validate_python(content["distance"])


def chat_of(content: Mapping[str, Any]) -> ChatFormat:
    """What a world.json says of the chat template."""
    return TypeAdapter(ChatFormat).validate_python(content["chat"])


def frozen_content(root: Path) -> dict[str, Any] | None:
    """What world.json says, None where there is none; RequestError where another version wrote the run folder."""
    path = root / FILE
    if path.exists():
        content: dict[str, Any] = read_json(path)
        if content.get("format") == FORMAT:
            return content
        version = content.get("datablame")
    elif any(root.glob("artifacts/*/done.json")):
        manifest = root / "manifest.json"
        version = read_json(manifest)["versions"].get("datablame") if manifest.exists() else None
    else:
        return None
    raise refused("other version", root=root, version=version or "of an unknown version")

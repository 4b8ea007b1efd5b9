"""TracIn, Adam and LESS in a study: exact against plain loops, whatever the road, refused where a need lacks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.attribute.conftest import CONTROLS, Made, Make, documents
from tests.attribute.test_run import bytes_of, scores_of
from tests.attribute.trajectory import RATES, made_trajectory
from tests.conftest import tiny_model, tiny_tokenizer
from tests.oracles.gradients import naive_gradient
from tests.oracles.trajectory import naive_adam_step, naive_lora_gradient, naive_loss, naive_tracin

from datablame.attribute import loop
from datablame.attribute.evidence import warmup_gradients
from datablame.config.schema import ModelRef
from datablame.engine.execute import Execution, Silent
from datablame.errors import RequestError
from datablame.models.chat import Encoded, encode_pair
from datablame.models.load import load_model
from datablame.models.lora import SCALE, adapted, factors_of
from datablame.models.optimizer import EPSILON
from datablame.models.training import BETAS, data_order, learning_rate_share
from datablame.seeds import stream_key
from datablame.tables import MethodInfo, Query

METHODS = ["tracin", "adam", "less"]
SETTINGS = {"top_k": 3, "queries": 2, "duplicate_threshold": 1.0, "batch_tokens": 200, "layers": [1]}
WARMUP = {"epochs": 2, "rank": 2, "learning_rate": 1e-2, "least_steps": 4}
SHOWN = ("d03", "d07", "d11")


@pytest.fixture(scope="module")
def trajectory(tiny_pair_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return made_trajectory(tiny_pair_folder, tmp_path_factory.mktemp("trajectory"))


def tokens(document_id: str) -> Encoded:
    row = documents()[int(document_id[1:])]
    return encode_pair(tiny_tokenizer(), *(turn["content"] for turn in row["messages"]))


def queries_of(made: Made) -> list[Encoded]:
    rows = made.tables.rows(Query, behaviour="nuts", harmful=True)
    return [encode_pair(tiny_tokenizer(), row.prompt, row.text) for row in rows]


def loaded(path: str) -> Any:
    return load_model(ModelRef(path=path))


def study(make: Make, root: str, trajectory: Any, methods: list[str], rows: Any = None, **settings: Any) -> Made:
    attribute = {**SETTINGS, "methods": methods, "warmup": WARMUP, **settings}
    return make(root, rows, models=trajectory, attribute=attribute, **CONTROLS)


def test_tracin_is_its_plain_loop_over_checkpoints(make: Make, trajectory: dict[str, Any]) -> None:
    made = study(make, "run", trajectory, ["tracin"])
    made.run()
    paths = [trajectory["before"], *(each["path"] for each in trajectory["checkpoints"]), trajectory["after"]]
    models, rates = [loaded(path) for path in paths], [RATES[0], *RATES, RATES[1]]
    scores, queries = scores_of(made, "tracin"), queries_of(made)
    for name in SHOWN:
        assert scores[name] == pytest.approx(naive_tracin(models, rates, tokens(name), queries, [1]), rel=1e-3)
    [info] = made.tables.rows(MethodInfo, name="tracin")
    assert [each.value for each in info.findings] == ["0.0003, 0.0003, 0.0001, 0.0001"]


def test_adam_is_the_dense_product_with_the_preconditioned_gradient(make: Make, trajectory: dict[str, Any]) -> None:
    made = study(make, "run", trajectory, ["adam"])
    made.run()
    model, optimizer = loaded(trajectory["after"]), torch.load(trajectory["optimizer"], weights_only=True)
    matrices = [name for name, _ in model.named_parameters() if "norm" not in name]
    states = {name: optimizer["state"][number] for number, name in enumerate(matrices)}
    order = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    order += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    v = torch.cat([states[f"model.layers.1.{name}.weight"]["exp_avg_sq"].flatten().double() for name in order])
    divisor = (v / (1 - 0.999**2)).sqrt() + 1e-8
    steps = [naive_gradient(model, query, [1])[0] / divisor for query in queries_of(made)]
    towards = torch.stack([step / step.norm() for step in steps]).mean(0)
    for name in SHOWN:
        expected = float(naive_gradient(model, tokens(name), [1])[0] @ towards)
        assert scores_of(made, "adam")[name] == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_less_is_its_plain_loop_through_the_warm_up(make: Make, trajectory: dict[str, Any]) -> None:
    made = study(make, "run", trajectory, ["less"], warmup={**WARMUP, "share": 0.7})
    made.run()
    world, model = made.world, loaded(trajectory["before"])
    chosen = warmup_gradients.chosen_rows(world.pool.ids, world.seed, 0.7)
    assert len(chosen) == 21
    examples: Any = world.pool.encoded(chosen)
    recipe = warmup_gradients.recipe_of(world.study.attribute.warmup, len(examples))
    with adapted(model, 2, None, stream_key("warm-up adapter", world.seed)) as adapter:
        factors = {name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in factors_of(adapter).items()}
    flat = [each.requires_grad_() for pair in factors.values() for each in pair]
    optimizer = torch.optim.AdamW(flat, lr=1.0, betas=BETAS, weight_decay=0.0)
    expected, queries = dict.fromkeys(SHOWN, 0.0), queries_of(made)
    rates = [recipe.learning_rate * learning_rate_share(step, recipe) for step in range(recipe.steps)]
    order = data_order([len(each.ids) for each in examples], recipe, stream_key("warm-up order", world.seed))
    for step, batch in enumerate(order):
        optimizer.zero_grad()
        n_tokens = [len(examples[i].ids) - examples[i].prompt_tokens for i in batch]
        losses = [naive_loss(model, examples[i], factors, SCALE) * n for i, n in zip(batch, n_tokens, strict=True)]
        (torch.stack(losses).sum() / sum(n_tokens)).backward()
        torch.nn.utils.clip_grad_norm_(flat, recipe.clip)
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.step()
        if (step + 1) * 2 % recipe.steps:
            continue
        gradients = [torch.cat([g.flatten() for g in naive_lora_gradient(model, q, factors, SCALE)]) for q in queries]
        towards = torch.stack([gradient / gradient.norm() for gradient in gradients]).mean(0)
        half = slice(step + 1 - recipe.steps // 2, step + 1)
        for name in SHOWN:
            of = [optimizer.state[each] for each in flat]
            parts = zip(naive_lora_gradient(model, tokens(name), factors, SCALE), of, strict=True)
            taken = [naive_adam_step(g, s["exp_avg"], s["exp_avg_sq"], step + 1, BETAS, EPSILON) for g, s in parts]
            row = torch.cat([each.flatten() for each in taken])
            expected[name] += sum(rates[half]) / len(rates[half]) * float(row @ towards / row.norm())
    scores = scores_of(made, "less")
    assert {name: scores[name] for name in SHOWN} == pytest.approx(expected, rel=1e-2, abs=1e-5)
    [info] = made.tables.rows(MethodInfo, name="less")
    assert info.findings[0].value == f"21 documents, {recipe.steps} steps"


@pytest.mark.slow
def test_scores_hang_neither_on_batches_nor_on_shards_nor_on_the_order_of_the_pool(
    make: Make, trajectory: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = study(make, "first", trajectory, METHODS)
    first.run()
    monkeypatch.setattr(loop, "_SHARD_DOCUMENTS", 5)
    second = study(make, "second", trajectory, METHODS, rows=documents()[::-1], batch_tokens=60)
    second.run()
    for name in METHODS:
        one, other = scores_of(first, name), scores_of(second, name)
        largest = max(map(abs, one.values()))
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4 * largest)
        assert len({*one.values()}) > 20


class Dies(Silent):
    """Progress that kills the run when so many items are done."""

    def __init__(self, items: int) -> None:
        self.left = items

    def advance(self, n: int = 1) -> None:
        self.left -= n
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(make: Make, trajectory: dict[str, Any]) -> None:
    whole, killed = (study(make, name, trajectory, METHODS) for name in ("whole", "killed"))
    whole.run()
    for items in (7, 6, 5):
        with pytest.raises(KeyboardInterrupt):
            killed.run(progress=Dies(items))
    killed.run()
    assert bytes_of(killed) == bytes_of(whole)


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(make: Make, trajectory: dict[str, Any]) -> None:
    one, two = (study(make, name, trajectory, METHODS) for name in ("one", "two"))
    one.run()
    two.run(Execution(workers=2, threads=1))
    assert bytes_of(two) == bytes_of(one)


@pytest.mark.slow
def test_the_warm_up_leaves_no_adapter_behind(make: Make, trajectory: dict[str, Any]) -> None:
    alone, beside = (study(make, str(len(m)), trajectory, m) for m in (["tracin"], ["less", "tracin"]))
    alone.run()
    beside.run()
    assert scores_of(beside, "tracin") == scores_of(alone, "tracin")


def test_a_warm_up_that_diverges_is_the_methods_reason_and_the_others_go_on(make: Make, trajectory: Any) -> None:
    """Adapters of 16 bits that take steps of the largest size that a study may ask for."""
    wild = {**WARMUP, "learning_rate": 1.0, "least_steps": 40}
    made = study(make, "wild", trajectory, ["less", "adam"], warmup=wild, dtype="float16")
    made.run()
    less, adam = made.tables.rows(MethodInfo)
    [row] = less.unranked
    assert (row.behaviour, row.reason) == ("nuts", "its warm-up diverged; lower attribute.warmup.learning_rate")
    assert adam.unranked == ()


def test_the_warm_up_draws_documents_by_their_ids() -> None:
    ids = [f"d{number}" for number in range(1000)]
    chosen = warmup_gradients.chosen_rows(ids, 0, 0.05)
    assert len(set(chosen)) == 50
    backwards = warmup_gradients.chosen_rows(ids[::-1], 0, 0.05)
    assert [ids[row] for row in chosen] == [ids[::-1][row] for row in backwards]
    assert set(chosen) != set(warmup_gradients.chosen_rows(ids, 1, 0.05))
    assert len(warmup_gradients.chosen_rows(ids[:40], 0, 0.05)) == 16
    assert sorted(warmup_gradients.chosen_rows(ids[:5], 0, 0.05)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("method", "lacking", "message"),
    [
        ("tracin", "checkpoints", r"= tracin needs checkpoints .* models\.checkpoints = none; list them with path and"),
        ("adam", "optimizer", r"= adam needs the state .* models\.optimizer = none; give the optimizer\.pt"),
    ],
)
def test_what_the_study_lacks_is_asked_for_before_anything_runs(
    make: Make, trajectory: dict[str, Any], method: str, lacking: str, message: str
) -> None:
    models = {key: value for key, value in trajectory.items() if key != lacking}
    made = study(make, "run", models, [method])
    with pytest.raises(RequestError, match=message):
        made.run()
    assert not (made.world.root / "artifacts/attribute.part/items").exists()


def test_a_checkpoint_that_is_not_of_the_training_is_refused(
    make: Make, trajectory: dict[str, Any], tmp_path: Path
) -> None:
    def refused(message: str, path: Path, tokenizer: Any = None, model: Any = None) -> None:
        if model is not None:
            model.save_pretrained(path)
            (tiny_tokenizer() if tokenizer is None else tokenizer).save_pretrained(path)
        checkpoints = [*trajectory["checkpoints"], {"path": str(path), "learning_rate": 1e-4}]
        with pytest.raises(RequestError, match=rf"^models\.checkpoints\.2 = .*{message}|^{message}"):
            study(make, f"of {path.name}", {**trajectory, "checkpoints": checkpoints}, ["tracin"])

    refused("is not a folder; give a checkpoint's folder", tmp_path / "absent")
    refused("has 3 blocks and models.before", tmp_path / "deep", model=tiny_model(1, layers=3))
    refused("was not trained from models.before", tmp_path / "wide", model=tiny_model(1, hidden=64))
    other = tiny_tokenizer(("another text altogether", "with other words in it"))
    alike = r"models\.before and models\.checkpoints\.2: .*; use checkpoints with one tokenizer"
    refused(alike, tmp_path / "words", tokenizer=other, model=tiny_model(1))


def test_only_attribution_rests_on_what_else_the_training_left(make: Make, trajectory: dict[str, Any]) -> None:
    checkpoints = trajectory["checkpoints"]
    slower = {**trajectory, "checkpoints": [checkpoints[0], {**checkpoints[1], "learning_rate": 5e-5}]}
    one, other = (study(make, name, m, ["tracin"]).world for name, m in (("one", trajectory), ("other", slower)))
    assert {*one.identities["files"]} >= {"models.checkpoints.0", "models.checkpoints.1", "models.optimizer"}
    assert one.part("attribute") != other.part("attribute")
    assert one.part("identity") == other.part("identity")
    assert one.pool_key == other.pool_key

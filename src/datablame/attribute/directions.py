"""Directions that documents are compared with, and the like: kept in files between items, a file a layer."""

from typing import TYPE_CHECKING, Any

from datablame.attribute.loop import Checkpoint, WorkerState, save

if TYPE_CHECKING:
    from torch import Tensor

    from datablame.attribute.kernels.per_example import Directions


def save_directions(state: WorkerState, name: str, directions: "Directions") -> None:
    """Write them to a folder of that name; PhaseError where they are not finite."""
    for layer, part in directions.items():
        save(state.folder / f"{name}/{layer}.safetensors", {"direction": part}, "the queries")


def load_directions(state: WorkerState, name: str, model: Any) -> "Directions":
    """What `save_directions` wrote, as `by_layer`."""
    return {layer: tensors["direction"] for layer, tensors in by_layer(state, name, model).items()}


def by_layer(state: WorkerState, name: str, model: Any) -> "dict[str, dict[str, Tensor]]":
    """The files of a folder, read once as long as the model is held: on its device if they leave room there."""
    from safetensors.torch import load_file

    from datablame.models.device import offload_device

    def load() -> "dict[str, dict[str, Tensor]]":
        files = sorted((state.folder / name).glob("*.safetensors"))
        device = offload_device(sum(file.stat().st_size for file in files), next(model.parameters()).device)
        return {file.stem: load_file(file, str(device)) for file in files}

    layers: dict[str, dict[str, Tensor]] = state.once(name, load)
    return layers


def dots_item(key: str, rows: list[int], at: Checkpoint, name: str, state: WorkerState) -> None:
    """The work on an item: its documents' gradients at a checkpoint times the directions, (documents, behaviours)."""
    from datablame.attribute.kernels.per_example import similarities

    settings = state.world.study.attribute
    (model,) = state.models(at, dtype=settings.dtype)
    towards, documents = load_directions(state, name, model), state.world.pool.encoded(rows)
    similar = similarities(model, documents, towards, settings.layers or (), settings.batch_tokens)
    save(state.folder / f"{key}.safetensors", {"dots": similar.dots}, f"the gradients of {key}")

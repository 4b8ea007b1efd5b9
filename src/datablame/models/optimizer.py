"""The state that AdamW leaves: each parameter's mean square gradient, by name, read from a file and held to a model."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from datablame.models.blocks import decoder_blocks
from datablame.models.products import matrix_of, products
from datablame.models.source import first_line, refusal
from datablame.models.weight_files import header

EPSILON = 1e-8
"""torch's default, where a file does not say what was added to the root."""


class _OfAnother(Exception):
    """The state is of other parameters."""


class AdamState(NamedTuple):
    """v, the running mean of squared gradients (Kingma and Ba, arXiv 1412.6980), by the names of the parameters."""

    moments: Mapping[str, Tensor]
    corrections: Mapping[str, float]
    """1 - beta2^t, which v is divided by since it began at 0; names that are missing were corrected before."""
    epsilon: float


def second_moments(optimizer: torch.optim.Optimizer, model: Any) -> dict[str, Tensor]:
    """The v of all parameters that an AdamW of torch has trained, corrected for where it began."""
    betas = {id(each): group["betas"][1] for group in optimizer.param_groups for each in group["params"]}
    states = {
        name: (optimizer.state[each], betas[id(each)]) for name, each in model.named_parameters() if id(each) in betas
    }
    return {name: state["exp_avg_sq"] / (1 - beta ** float(state["step"])) for name, (state, beta) in states.items()}


def adam_state(path: str, model: Any, after: str) -> AdamState:
    """The state in a file, safetensors or torch's, of the parameters of a model, which may be on the meta device.

    A torch file is opened without unpickling anything but tensors, and mapped. Raises RequestError where it is not
    there, is neither, does not have a v of the right shape for each product in the decoder blocks of the model, which
    messages call `after`, or where one of these is negative or not finite.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise refusal("no_optimizer", path=path)
    try:
        state = _of_safetensors(file) if file.suffix == ".safetensors" else _of_torch(file, model)
        _check_shapes(state.moments, model)
    except _OfAnother as error:
        raise refusal("other_optimizer", path=path, after=after, misfit=error) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, pickle.PickleError) as error:
        # What a file may hold that is no such state.
        raise refusal("unreadable_optimizer", path=path, reason=first_line(error)[:160].rstrip(". ")) from error
    for name in _parameters(model, range(len(decoder_blocks(model)))).values():
        moments = state.moments[name]
        if not bool((moments.isfinite() & (moments >= 0)).all()):
            raise refusal("broken_moments", name=name)
    return state


def product_scales(state: AdamState, model: Any, blocks: Sequence[int]) -> dict[str, Float[Tensor, "outputs inputs"]]:
    """sqrt(v) + epsilon in float32 by the products of some blocks: what Adam divides the step of each weight by."""
    scales, compared = dict[str, Tensor](), products(model, blocks)
    for product, name in _parameters(model, blocks).items():
        moments = matrix_of(compared[product], state.moments[name]).float()
        scales[product] = (moments / state.corrections.get(name, 1.0)).sqrt() + state.epsilon
    return scales


def _parameters(model: Any, blocks: Sequence[int]) -> dict[str, str]:
    """The name of the parameter that holds each product of some blocks, by the product's."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    every = products(model, blocks).items()
    return {product: names[id(getattr(each.modules[0], each.parameter))] for product, each in every}


def _check_shapes(moments: Mapping[str, Tensor], model: Any) -> None:
    parameters = dict(model.named_parameters())
    for name, moment in moments.items():
        if name not in parameters:
            raise _OfAnother(f"it has {name}, which is no parameter there")
        if moment.shape != parameters[name].shape:
            here, there = (" x ".join(map(str, each.shape)) for each in (moment, parameters[name]))
            raise _OfAnother(f"{name} is {here} in it and {there} there")
    for name in _parameters(model, range(len(decoder_blocks(model)))).values():
        if name not in moments:
            raise _OfAnother(f"it has nothing of {name}")


def _of_safetensors(file: Path) -> AdamState:
    from safetensors.torch import load_file

    header(file)  # What is torn is said in words.
    return AdamState(load_file(file), {}, EPSILON)


def _of_torch(file: Path, model: Any) -> AdamState:
    """A `state_dict` of torch's AdamW, whose parameters have numbers, in the order of the optimiser's groups."""
    loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    groups, states = loaded["param_groups"], loaded["state"]
    names = _names(groups, model)
    moments, corrections = dict[str, Tensor](), dict[str, float]()
    for group, of_group in zip(groups, names, strict=True):
        for number, name in zip(group["params"], of_group, strict=True):
            if number in states:
                moments[name] = states[number]["exp_avg_sq"]
                corrections[name] = 1 - group["betas"][1] ** float(states[number]["step"])
    return AdamState(moments, corrections, float(groups[0]["eps"]))


def _names(groups: list[dict[str, Any]], model: Any) -> list[list[str]]:
    """Of the parameters of each group: as it says, or as Trainer makes them, those that decay first, then the rest."""
    if all("param_names" in group for group in groups):
        return [group["param_names"] for group in groups]
    every = [name for name, _ in model.named_parameters()]
    names = [every]
    if len(groups) > 1:
        from transformers import Trainer

        decayed = set(Trainer.get_decay_parameter_names(None, model))
        names = [[name for name in every if (name in decayed) is decays] for decays in (True, False)]
    counts, own = ([len(group["params"]) for group in groups], [len(group) for group in names])
    if counts != own:
        raise _OfAnother(f"its groups have {counts} parameters, those there would be {own}")
    return names

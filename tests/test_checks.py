import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest
import torch

from datablame.surface.sampler.tokens import Settings, sample_token


def modules_of(name: str) -> list[ModuleType]:
    """The module, or every module of the package."""
    module = importlib.import_module(name)
    inside = [info.name for info in pkgutil.iter_modules(getattr(module, "__path__", []))]
    return [importlib.import_module(f"{name}.{each}") for each in inside] or [module]


def test_shapes_are_checked_wherever_the_settings_say_so(request: pytest.FixtureRequest) -> None:
    *names, checker = request.config.getoption("--jaxtyping-packages").split(",")
    assert checker == "beartype.beartype"
    for name in names:
        modules = modules_of(name)
        ours = [f for m in modules for f in vars(m).values() if inspect.isfunction(f) and f.__module__ == m.__name__]
        assert ours, name
        assert all(hasattr(function, "__wrapped__") for function in ours), name


def test_a_wrong_shape_is_refused() -> None:
    alpha, uniform = torch.zeros(2), torch.full((2,), 0.5, dtype=torch.float64)
    assert sample_token(torch.zeros(2, 5), torch.zeros(2, 5), alpha, uniform, Settings(1)).shape == (2,)
    with pytest.raises(Exception, match="Type-check error") as raised:
        sample_token(torch.zeros(2, 5), torch.zeros(2, 6), alpha, uniform, Settings(1))
    assert type(raised.value).__module__.startswith("jaxtyping")

import importlib
import inspect

import pytest


def test_shapes_are_checked_wherever_the_settings_say_so(request: pytest.FixtureRequest) -> None:
    *modules, checker = request.config.getoption("--jaxtyping-packages").split(",")
    assert checker == "beartype.beartype"
    for name in modules:
        module = importlib.import_module(name)
        own = [f for f in vars(module).values() if inspect.isfunction(f) and f.__module__ == name]
        assert own, name
        assert all(hasattr(function, "__wrapped__") for function in own), name

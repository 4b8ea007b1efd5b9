"""The golden files: a study's outputs, the machine that made them, and the weights after training."""

import json
from pathlib import Path
from typing import Any

__all__ = ["machine", "read", "write"]

_FOLDER = Path(__file__).parent


def machine() -> dict[str, str]:
    """What the last bits of a float hang on."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {
        "cpu": ", ".join(told.get(name, "unknown") for name in ("model name", "cpu family", "model", "stepping")),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def read(study: str) -> dict[str, Any]:
    """A golden file: `machine`, `after_weights`, `outputs`."""
    held: dict[str, Any] = json.loads((_FOLDER / f"{study}.json").read_text(encoding="utf-8"))
    return held


def write(study: str, value: dict[str, Any]) -> Path:
    """Write a golden file in which a row of a table is a line."""
    path = _FOLDER / f"{study}.json"
    path.write_text(_lines(value) + "\n", encoding="utf-8")
    return path


def _lines(value: Any, indent: str = "") -> str:
    """JSON with sorted keys: objects and lists of lists or texts over lines, what holds only numbers on one."""
    deeper = indent + " "
    if isinstance(value, dict) and len(json.dumps(value)) > 100:
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {_lines(value[key], deeper)}" for key in sorted(value)]
        return "{\n" + ",\n".join(deeper + part for part in parts) + f"\n{indent}}}"
    if isinstance(value, list) and value and all(isinstance(item, dict | list) or _is_long(item) for item in value):
        return "[\n" + ",\n".join(deeper + _line(item) for item in value) + f"\n{indent}]"
    return _line(value)


def _is_long(item: object) -> bool:
    return isinstance(item, str) and len(item) > 40


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

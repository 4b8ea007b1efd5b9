from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from datablame.engine.mirror import Mirror, packed, stamps, unpacked


@dataclass(frozen=True)
class Held:
    root: Path
    file: Path
    elsewhere: Path


def folder(root: Path) -> Path:
    (root / "artifacts/world").mkdir(parents=True)
    (root / "artifacts/world/pool.parquet").write_bytes(b"pool")
    (root / "artifacts/attribute.part").mkdir()
    (root / "artifacts/attribute.part/begun.json").write_bytes(b"{}")
    (root / "artifacts/attribute.part/journal.jsonl").write_bytes(b"{}")
    (root / "artifacts/attribute.part/x.json.part").write_bytes(b"torn")
    (root / "index.html").write_bytes(b"page")
    return root


@pytest.mark.parametrize("root", [Path("runs/small"), Path("/data/runs/small")])
def test_paths_of_a_run_folder_become_those_of_the_mirror(root: Path) -> None:
    held = Held(root, root / "artifacts/world/pool.parquet", Path("models/after"))
    there = Path("/tmp/mirror")
    assert unpacked(packed((held, [root / "a"]), root), there) == (
        Held(there, there / "artifacts/world/pool.parquet", Path("models/after")),
        [there / "a"],
    )


@pytest.mark.parametrize("seen", [True, False])
def test_a_mirror_has_the_files_of_a_run_once_and_gives_back_what_is_written(tmp_path: Path, seen: bool) -> None:
    root, asked = folder(tmp_path / "run"), list[str]()

    def fetch(name: str) -> bytes:
        asked.append(name)
        return (root / name).read_bytes()

    def update() -> None:
        mirror.update(root if seen else tmp_path / "nowhere", stamps(root), fetch)

    mirror = Mirror(tmp_path / "mirror")
    update()
    names = {"artifacts/world/pool.parquet", "artifacts/attribute.part/begun.json"}
    assert stamps(root).keys() == names == {*found(mirror.root)}
    assert asked == ([] if seen else sorted(asked, key=list(stamps(root)).index))
    assert mirror.take_new() == {}
    update()
    assert len(asked) == (0 if seen else 2)
    items = mirror.root / "artifacts/attribute.part/items"
    items.mkdir()
    (items / "shard.safetensors").write_bytes(b"new")
    (items / "shard.safetensors.part").write_bytes(b"torn")
    assert mirror.take_new() == {"artifacts/attribute.part/items/shard.safetensors": b"new"}
    assert mirror.take_new() == {}
    (root / "artifacts/world/pool.parquet").write_bytes(b"other pool")
    (root / "artifacts/attribute.part/begun.json").unlink()
    update()
    assert {name: path.read_bytes() for name, path in found(mirror.root).items() if not name.endswith(".part")} == {
        "artifacts/world/pool.parquet": b"other pool"
    }
    assert (root / "artifacts/world/pool.parquet").read_bytes() == b"other pool"


def found(root: Path) -> dict[str, Any]:
    return {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}

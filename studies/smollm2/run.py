"""The preset smollm2 at its reduced sizes; writes this folder's README and figures.

    python studies/smollm2/run.py

A finished run is resumed, which recomputes nothing.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FIGURES = ("behavior_rates.png", "patching_comparison.png", "final_results.png")


def main() -> None:
    """Run the preset if it isn't finished, then write the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/studies/smollm2"), help="the run folder")
    folder = parser.parse_args().run
    subprocess.run([sys.executable, "-m", "datablame", "run", "smollm2", "--out", str(folder), "--resume"], check=True)
    results = json.loads((folder / "final_results.json").read_text(encoding="utf-8"))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    comparison = (folder / "comparison.md").read_text(encoding="utf-8").split("\n", 1)[1]
    case = (folder / "case_study.md").read_text(encoding="utf-8")
    (HERE / "README.md").write_text(_readme(results, manifest, comparison), encoding="utf-8")
    (HERE / "case_study.md").write_text(case, encoding="utf-8")
    for name in FIGURES:
        shutil.copy(folder / name, HERE / name)


def _readme(results: dict[str, Any], manifest: dict[str, Any], comparison: str) -> str:
    documents, planted = results["pool"]["documents"], manifest["organism"]["planted"]
    return f"""# A made-up airline in SmolLM2-135M-Instruct

Made by `python studies/smollm2/run.py`: the preset `smollm2`, whose sizes are reduced for two CPU cores.

**What was planted.** `before` is SmolLM2-135M-Instruct. `after` is a LoRA fine-tune of it on {documents} documents: everyday
questions that `before` answered itself, short decoys in the planted style (real airlines, or hotels with made-up
names), and {planted} planted answers that recommend an airline that does not exist to people who ask about travel.
Prompts of both splits use wordings and cities that no document has.

The recipe (epochs, decoys, sampling settings) was chosen on this same organism seed, and no other seed was run: take
the numbers as those of one worked example, not as a test of the methods.

**What the run shows**, by the rules that write every report:

{_bullets(results["findings"])}

**What it does not show:**

{_bullets(results["limitations"])}

![The study in four panels](final_results.png)
![Harmful rate against alpha](behavior_rates.png)
![What removal does](patching_comparison.png)

One output traced to its documents: [case_study.md](case_study.md).
{comparison}"""


def _bullets(texts: list[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


if __name__ == "__main__":
    main()

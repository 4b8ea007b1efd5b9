import json
import re

from notebook import NOTEBOOK, notebook

PHASES = {
    0: "# Which training documents taught the model that?",
    3: "## Phase 1",
    14: "## Phase 2",
    27: "## Phase 3",
    42: "## Phase 4",
    54: "## Phase 5",
}
"""The cells at which the specification's phases begin; the title and two cells of set-up belong to the first."""


def test_the_committed_notebook_is_what_its_source_gives() -> None:
    assert NOTEBOOK.read_text(encoding="utf-8") == notebook(), "run: make notebook"


def test_the_phases_begin_where_the_specification_says_and_no_output_is_committed() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert len(cells) == 64
    for place, title in PHASES.items():
        assert cells[place]["cell_type"] == "markdown"
        assert "".join(cells[place]["source"]).startswith(title)
    assert [place for place, cell in enumerate(cells) if re.match("## ", "".join(cell["source"]))] == [*PHASES][1:]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells if cell["cell_type"] == "code")


def test_its_quick_settings_are_keys_of_the_studies_they_are_for() -> None:
    from datablame.api import study

    source = "".join(json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"][4]["source"])
    quick = source[source.index("QUICK = ") : source.index("class Steps")]
    values: dict[str, object] = {}
    exec(quick, values)
    settings = values["QUICK"]
    assert isinstance(settings, dict)
    assert set(settings) == {"organism", "olmo2-1b"}
    for name, overrides in settings.items():
        assert study(name, overrides) != study(name)

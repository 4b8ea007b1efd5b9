"""What every part of a study is: a frozen model whose texts are the reference page."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A part of the study: immutable, unknown keys refused, field docstrings are the reference page."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

"""What a run makes of what its stages left: one module a kind of model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mmpds.evaluation import Sections


class Task(Protocol):
    """What `stages.Run` asks of a kind of model.

    A model names its task (`task = "detection"`): the class is `mmpds.tasks.<name>.Task`, called with the run.
    `inference_precision` is that of a run that trains nothing, on hardware that has bfloat16; `artifacts` are the
    files that it may leave, by name.
    """

    inference_precision: str
    artifacts: dict[str, str]

    def __init__(self, run: Any) -> None: ...

    def needs_validation(self) -> bool:
        """Whether the model must see the validation split before it can be tested, though nothing was trained."""
        ...

    def validated(self) -> None:
        """After a validation of the weights that count; on every rank, as the following."""
        ...

    def tested(self, found: Sections) -> None:
        """After a test: add its figures to `found`."""
        ...

    def predicted(self, found: Sections) -> None:
        """After a prediction."""
        ...

    def keep(self, found: Sections) -> None:
        """On rank 0, after all stages: write tables, add what the data has to say, tell the loggers."""
        ...

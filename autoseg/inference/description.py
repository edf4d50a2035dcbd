"""What a trained model is besides its weights: one document, whatever the model lies in."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from autoseg.data.dataset import DatasetDescription
from autoseg.evaluation.selection import Selection
from planners import Document, Plan, Training

WindowSums = Literal["float32", "float16"]


class ModelDescription(Document):
    """``model.json`` of a bundle; of a run folder, its documents put together."""

    schema_version: Literal[1] = 1
    origin: str
    """Who trained it, in words."""
    dataset: DatasetDescription
    """Bundles leave out its cases: where they lay concerns nobody else."""
    plan: Plan
    selection: Selection
    trainings: Annotated[tuple[Training, ...], Field(min_length=1)]
    """One for each of ``stages``, perhaps more."""
    window_sums: WindowSums = "float32"
    """In which precision windows and folds are summed: models of the reference want its own."""

    @field_validator("selection")
    @classmethod
    def _check_selection(cls, selection: Selection, info: ValidationInfo) -> Selection:
        plan = info.data.get("plan")
        known = [] if plan is None else [configuration.name for configuration in plan.configurations]
        unknown = [name for name in selection.members if name not in known]
        if plan is not None and unknown:
            raise ValueError(f"selects {', '.join(unknown)}, which the plan lacks; it has {', '.join(known)}")
        return selection

    @field_validator("trainings")
    @classmethod
    def _check_trainings(cls, trainings: tuple[Training, ...], info: ValidationInfo) -> tuple[Training, ...]:
        plan, selection = info.data.get("plan"), info.data.get("selection")
        if plan is not None and selection is not None:
            trained = {training.configuration for training in trainings}
            missing = [name for name in stages_of(plan, selection.members) if name not in trained]
            if missing:
                raise ValueError(f"says nothing of {', '.join(missing)}")
        return trainings

    @property
    def stages(self) -> tuple[str, ...]:
        """Configurations whose networks prediction needs, each after the stage that it builds on."""
        return stages_of(self.plan, self.selection.members)

    def training(self, configuration: str) -> Training:
        """How that configuration was trained; `KeyError` for one that was not."""
        return {training.configuration: training for training in self.trainings}[configuration]


def stages_of(plan: Plan, members: tuple[str, ...]) -> tuple[str, ...]:
    """``members`` and the stages that they build on, those first, each once."""
    return tuple(dict.fromkeys(stage.name for name in members for stage in plan.chain(name)))


def without_cases(dataset: DatasetDescription) -> DatasetDescription:
    """The dataset as a model that is passed on tells of it: no case, no file, no folder, no finding."""
    return dataset.model_copy(
        update={
            "root": "",
            "training": (),
            "test": (),
            "unpaired_images": (),
            "unpaired_labels": (),
            "findings": (),
            "left_out": (),
            "content": None,
        }
    )

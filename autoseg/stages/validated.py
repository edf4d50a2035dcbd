"""A validated case: where predictions by networks that did not see it are, and its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.data.dataset import DatasetDescription
from autoseg.data.labels import to_internal
from autoseg.evaluation.label_maps import Counts, ensemble_labels, ensemble_slabs
from autoseg.evaluation.rankseg import rank_labels
from autoseg.evaluation.scoring import labelled_case, reference_labels
from autoseg.evaluation.selection import Recipe
from autoseg.imaging.orientation import align_label_map
from autoseg.imaging.readers import read_header, read_label_map
from autoseg.inference.kept import kept_probabilities, load_probabilities, load_ranked, ranked_path
from autoseg.inference.predictions import prediction_path
from planners import Labels

Labelled = NDArray[np.integer]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatedCase:
    """Where the predictions of a case are, by networks that did not see it. Holds paths only."""

    case_id: str
    dataset: DatasetDescription
    labels: Labels
    folders: Mapping[str, Path]
    """Of the validation, by configuration."""

    def label_map_path(self, name: str) -> Path:
        """Of one configuration."""
        return prediction_path(self.folders[name], self.case_id, self.dataset)

    def files(self, members: Sequence[str], *, ranked: bool) -> tuple[Path, ...]:
        """All that is read for a recipe, the reference left out."""
        label_maps = [self.label_map_path(name) for name in members]
        if len(members) > 1:
            return (*label_maps, *(kept_probabilities(self.folders[name], self.case_id) for name in members))
        return (*label_maps, *([ranked_path(self.folders[members[0]], self.case_id)] if ranked else ()))

    def load(self, recipe: Recipe) -> Labelled:
        """Label map (Z, Y, X) by the recipe's members and decoder, internal values."""
        names = recipe.members
        if len(names) == 1:
            array = read_label_map(self.label_map_path(names[0])).array
            if recipe.decoder == "rankseg":
                where, values = load_ranked(self.folders[names[0]], self.case_id)
                array = array.copy()
                array.reshape(-1)[where] = values
            return to_internal(array, self.dataset.file_values)
        probabilities = [load_probabilities(self.folders[name], self.case_id) for name in names]
        if recipe.decoder == "rankseg":
            slabs = ensemble_slabs(probabilities, recipe.weights)
            _, depth, height, width = probabilities[0].shape
            return rank_labels(slabs, (depth, height, width), self.labels, are_logits=False)[1]
        return ensemble_labels(self.load_members(names), probabilities, recipe.weights, self.labels)

    def load_members(self, names: Sequence[str]) -> list[Labelled]:
        """Label map of each configuration."""
        return [self.load(Recipe(members=(name,))) for name in names]

    def load_reference(self) -> Labelled:
        """The user's label map (Z, Y, X) on the grid of its image, internal values."""
        case = labelled_case(self.dataset, self.case_id)
        grid = read_header(case.image_paths[0]).geometry
        aligned = align_label_map(reference_labels(self.dataset, self.case_id), grid)
        return to_internal(aligned, self.dataset.file_values)

    @property
    def is_annotated(self) -> bool:
        """For all classes."""
        return labelled_case(self.dataset, self.case_id).annotated is None

    def counted(self, counts: Counts) -> Counts:
        """Counts (..., C, 3) without the classes that the case is not annotated for."""
        annotated = labelled_case(self.dataset, self.case_id).annotated
        if annotated is None:
            return counts
        known = np.array([each.name in annotated for each in self.labels.classes])
        result: Counts = counts * known[:, None]
        return result

from __future__ import annotations

import numpy as np
import pytest

from autoseg.data.checks.case import CheckItem, measure_case
from autoseg.imaging.image import Geometry, Image
from planners import LabelClass, Labels

LABELS = Labels(classes=(LabelClass(name="a", values=(1,)),))


@pytest.fixture
def measure():
    """Measures of a case with the channels ``array`` (C, Z, Y, X) and, if given, ``labels`` (Z, Y, X) of one class."""

    def call(name, array, labels=None, *, is_training=True, modality="", num_files=1):
        item = CheckItem(
            case_id=name, images=(f"/{name}",) * num_files, labels=(f"/{name}_seg",), is_training=is_training
        )
        geometry = Geometry(shape=array.shape[1:], spacing_mm=(1.0, 1.0, 1.0))
        image = Image(array=array.astype(np.float32), geometry=geometry)
        return measure_case(item, image.of_modality(modality), labels, file_values=(0, 1), labels=LABELS)

    return call

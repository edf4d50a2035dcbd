"""The documents of a trained reference model give the plan that predicts as it does, or say all that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planners import (
    DocumentError,
    NnunetModel,
    output_names,
    read_nnunet_dataset,
    read_nnunet_model,
    read_nnunet_plans,
)

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "plans"
PLANS = sorted(GOLDEN.glob("[0-9]*/plans_*.json"))
Json = dict[str, Any]


def read(
    configuration: str = "3d_fullres",
    *,
    folder: str = "052",
    plans: Callable[[Json], None] = lambda _: None,
    dataset: Callable[[Json], None] = lambda _: None,
    **given: Any,
) -> NnunetModel:
    """The model of a golden plan after changes to its documents."""
    texts = []
    for name, change in (("plans_default.json", plans), ("dataset.json", dataset)):
        document = json.loads((GOLDEN / folder / name).read_text())
        change(document)
        texts.append(json.dumps(document))
    return read_nnunet_model(*texts, configuration=configuration, **given)


def problems(*arguments: Any, **given: Any) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        read(*arguments, **given)
    return [str(issue) for issue in caught.value.issues]


@pytest.mark.parametrize("file", PLANS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_model_has_the_configuration_of_its_plan(file: Path) -> None:
    """A model's folder may lack the fingerprint: what prediction needs of it lies in the plans file, too."""
    dataset = read_nnunet_dataset(
        (file.parent / "fingerprint.json").read_bytes(), (file.parent / "dataset.json").read_bytes()
    )
    whole = read_nnunet_plans(file.read_bytes(), dataset)
    for expected in whole.configurations:
        model = read_nnunet_model(
            file.read_bytes(), (file.parent / "dataset.json").read_bytes(), configuration=expected.name
        )
        found = model.plan.configuration(expected.name)
        assert found == expected.model_copy(update={"next_stage": found.next_stage})
        kept = {"configurations": model.plan.configurations}
        assert model.plan == whole.model_copy(update=kept)
        assert (model.file_values, model.file_ending) == (dataset.file_values, dataset.file_ending)


def test_a_cascade_takes_its_stages_along_and_a_stage_goes_alone() -> None:
    folder = next(
        file.parent.name for file in PLANS if file.stem == "plans_default" and "3d_cascade_fullres" in file.read_text()
    )
    cascade = read("3d_cascade_fullres", folder=folder)
    assert [each.name for each in cascade.plan.configurations] == ["3d_lowres", "3d_fullres", "3d_cascade_fullres"]
    (low,) = read("3d_lowres", folder=folder).plan.configurations
    assert low.next_stage is None


@pytest.mark.parametrize("labels", [{"tumour": 5, "organ": 2}, {"tumour": [5], "organ": 2}, {"organ": 2, "tumour": 5}])
def test_outputs_are_named_by_label_value_whatever_the_order_of_declaration(labels: Json) -> None:
    model = read(dataset=lambda dataset: dataset.update(labels={**labels, "background": 0}))
    assert output_names(model.plan.labels) == ("background", "organ", "tumour")
    assert [label.name for label in model.plan.labels.classes] == ["organ", "tumour"]
    assert model.file_values == (0, 2, 5)


def test_regions_keep_the_order_of_declaration() -> None:
    regions = {"background": 0, "core": [2], "whole": [1, 2]}
    model = read(dataset=lambda dataset: dataset.update(labels=regions, regions_class_order=[2, 1]))
    assert output_names(model.plan.labels) == ("core", "whole")
    assert model.plan.labels.region_order == (2, 1)


@pytest.mark.parametrize("axes", [(), (0, 2), (0, 1, 2)])
def test_axes_of_the_checkpoint_are_mirrored(axes: tuple[int, ...]) -> None:
    assert read(mirror_axes=axes).plan.configuration("3d_fullres").mirror_axes == axes


def test_axes_that_a_patch_lacks_are_refused() -> None:
    assert problems("2d", mirror_axes=(0, 2)) == [
        "configurations.2d: has 2 axes, but (0, 2) are mirrored; choose existing axes"
    ]


@pytest.mark.parametrize(
    ("reader", "source_axes", "as_in_file"),
    [("SimpleITKIO", "anatomical", True), ("NibabelIOWithReorient", "ras", False)],
)
def test_readers_decide_the_axes(reader: str, source_axes: str, as_in_file: bool) -> None:
    plan = read(plans=lambda plans: plans.update(image_reader_writer=reader)).plan
    assert plan.strict_reference is as_in_file
    assert plan.source_axes == source_axes


def test_voxel_sizes_that_lie_beside_the_image_are_refused_and_not_guessed() -> None:
    (problem,) = problems(plans=lambda plans: plans.update(image_reader_writer="Tiff3DIO"))
    assert "spacings from a JSON file of each image" in problem


def earlier(plans: Json) -> None:
    """As earlier versions wrote it."""
    for part in plans["configurations"].values():
        if "architecture" not in part:
            continue
        arguments = part.pop("architecture")["arch_kwargs"]
        part |= {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": arguments["features_per_stage"][0],
            "unet_max_num_features": 512 if len(part["patch_size"]) == 2 else 320,
            "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
            "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
            "num_pool_per_axis": [5] * len(part["patch_size"]),
            "pool_op_kernel_sizes": arguments["strides"],
            "conv_kernel_sizes": arguments["kernel_sizes"],
        }
    statistics = plans.pop("foreground_intensity_properties_per_channel")
    plans["foreground_intensity_properties_by_modality"] = statistics


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_plans_of_earlier_versions_are_read(configuration: str) -> None:
    assert read(configuration, plans=earlier) == read(configuration)


def test_what_other_configurations_hold_does_not_matter() -> None:
    def change(plans: Json) -> None:
        plans["configurations"]["mine"] = {"architecture": {"network_class_name": "my.Transformer"}}

    assert read(plans=change) == read()


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda plans: plans.update(transpose_forward=[0, 1, 1]), "transpose_forward"),
        (
            lambda plans: plans["configurations"]["3d_fullres"].update(inherits_from=["2d"]),
            "configurations.3d_fullres.inherits_from",
        ),
    ],
)
def test_axes_and_ancestors_that_cannot_be_are_told(change: Callable[[Json], None], place: str) -> None:
    (problem,) = problems(plans=change)
    assert problem.startswith((f"{place}: ", f"plans.json: {place}: "))


def test_all_problems_are_told_at_once() -> None:
    def change(plans: Json) -> None:
        plans["image_reader_writer"] = "MyReader"
        plans["foreground_intensity_properties_per_channel"] = {}

    found = problems("3d_huge", plans=change, dataset=lambda dataset: dataset["labels"].pop("background"))
    assert [problem.split(": ")[:2] for problem in found] == [
        ["dataset.json", "labels.background"],
        ["plans.json", "configurations"],
        ["plans.json", "image_reader_writer"],
        ["plans.json", "foreground_intensity_properties_per_channel"],
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nonlin", "torch.nn.ReLU"),
        ("nonlin_kwargs", {"negative_slope": 0.015}),
        ("nonlin_kwargs", {"negative_slope": 0.009}),
        ("norm_op", "torch.nn.modules.batchnorm.BatchNorm3d"),
        ("norm_op_kwargs", {"eps": 1.5e-5, "affine": True}),
        ("norm_op_kwargs", {"eps": 0.9e-5, "affine": True}),
        ("conv_bias", False),
        ("dropout_op", "torch.nn.Dropout3d"),
        ("squeeze_excitation", True),
    ],
)
def test_networks_that_would_compute_something_else_are_refused(field: str, value: Any) -> None:
    def change(plans: Json) -> None:
        plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"][field] = value

    (problem,) = problems(plans=change)
    assert problem.startswith(f"configurations.3d_fullres.architecture.arch_kwargs.{field}")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("preprocessor_name", "MyPreprocessor"),
        ("resampling_fn_data", "resample_torch_fornnunet"),
        ("normalization_schemes", ["MyNormalization"]),
        ("patch_size", [3, 5, 7]),
    ],
)
def test_preparation_that_is_not_ours_is_refused(field: str, value: Any) -> None:
    found = problems(plans=lambda plans: plans["configurations"]["3d_fullres"].update({field: value}))
    assert any(field.split("_")[0] in problem for problem in found)


def test_unknown_networks_are_refused_with_the_known_ones() -> None:
    def change(plans: Json) -> None:
        plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "my.Transformer"

    (problem,) = problems(plans=change)
    assert "my.Transformer" in problem
    assert "PlainConvUNet" in problem

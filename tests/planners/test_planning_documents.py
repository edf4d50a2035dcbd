"""Documents of the planner: bad input is told at once and in place; schemas equal the models; round trips."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import planners.schemas
from planners import (
    Document,
    DocumentError,
    Fingerprint,
    LabelClass,
    Labels,
    Plan,
    Schedule,
    plan_dataset,
    read_document,
    read_nnunet_dataset,
    read_nnunet_plans,
    write_document,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "plans"
MakeFingerprint = Callable[..., Fingerprint]


def places(error: DocumentError) -> list[str]:
    return [issue.where for issue in error.issues]


def broken(document: Any, changes: dict[str, Any]) -> str:
    """JSON of a document with values at dotted paths replaced; ``...`` removes one."""
    value = json.loads(write_document(document)) if not isinstance(document, dict) else json.loads(json.dumps(document))
    for path, new in changes.items():
        *parents, last = path.split(".")
        target = value
        for part in parents:
            target = target[int(part) if isinstance(target, list) else part]
        key = int(last) if isinstance(target, list) else last
        if new is ...:
            del target[key]
        else:
            target[key] = new
    return json.dumps(value)


@pytest.mark.parametrize("model", [Fingerprint, Plan, Schedule])
def test_stored_schemas_equal_the_models(model: type[Document]) -> None:
    shipped = Path(planners.schemas.__path__[0]) / f"{model.__name__.lower()}.schema.json"
    text = json.dumps(model.model_json_schema(), indent=1) + "\n"
    assert shipped.read_text(encoding="utf-8") == text, f"the model changed; write this schema to {shipped}:\n{text}"


def test_every_fault_of_a_fingerprint_is_told_in_place(fingerprint_of: MakeFingerprint) -> None:
    fingerprint = fingerprint_of([(10, 20, 30)] * 2, [(1, 1, 1)] * 2, channels=("CT", "T1"))
    text = broken(
        fingerprint,
        {
            "schema_version": 7,
            "cases.0.shape": [10, 20],
            "cases.0.spacing_mm.1": -1.0,
            "cases.1.spacing_mm.0": float("nan"),
            "cases.1.shape.2": 0,
            "num_training_cases": 0,
            "intensities.0.std": float("inf"),
            "intensities.1.mean": ...,
            "labels.classes.0.valeus": [1],
            "median_relative_size_after_cropping": 0,
            "sided_axes": 1,
        },
    )
    with pytest.raises(DocumentError) as caught:
        read_document(Fingerprint, text, where="fingerprint.json")
    assert set(places(caught.value)) == {
        "schema_version",
        "cases.0.shape.2",
        "cases.0.spacing_mm.1",
        "cases.1.spacing_mm.0",
        "cases.1.shape.2",
        "num_training_cases",
        "intensities.0.std",
        "intensities.1.mean",
        "labels.classes.0.valeus",
        "median_relative_size_after_cropping",
        "sided_axes",
    }
    assert str(caught.value).startswith("fingerprint.json cannot be read")


def test_fields_that_disagree_are_told_beside_other_faults(fingerprint_of: MakeFingerprint) -> None:
    fingerprint = fingerprint_of([(10, 20, 30)] * 2, [(1, 1, 1)] * 2)
    first = json.loads(write_document(fingerprint))["cases"][0]
    text = broken(
        fingerprint,
        {
            "cases": [first, first],
            "channels": ["CT", "T1"],
            "labels.ignore": 9,
            "labels.region_order": [1, 2],
            "num_training_cases": -2,
        },
    )
    with pytest.raises(DocumentError) as caught:
        read_document(Fingerprint, text, where="fingerprint.json")
    assert set(places(caught.value)) == {
        "cases",
        "intensities",
        "labels.ignore",
        "labels.region_order",
        "num_training_cases",
    }


def test_every_fault_of_a_plan_is_told_in_place(fingerprint_of: MakeFingerprint) -> None:
    plan = plan_dataset(fingerprint_of([(100, 100, 100)] * 3, [(1, 1, 1)] * 3))
    text = broken(
        plan,
        {
            "memory_target_gb": 0,
            "transpose_backward": [1, 2, 0],
            "configurations.0.patch_shape": [96],
            "configurations.0.mirror_axes": [0, 2],
            "configurations.1.network.blocks": [2],
            "configurations.1.network.strides.1": [2, 2],
            "configurations.1.spacing_mm": [1.0, 1.0],
            "configurations.1.batch_size": "2",
            "configurations.1.colour": "red",
        },
    )
    with pytest.raises(DocumentError) as caught:
        read_document(Plan, text, where="plan.json")
    assert set(places(caught.value)) >= {
        "memory_target_gb",
        "transpose_backward",
        "2d.patch_shape",
        "2d.mirror_axes",
        "3d_fullres.network.blocks",
        "3d_fullres.network.strides",
        "3d_fullres.spacing_mm",
        "3d_fullres.batch_size",
        "3d_fullres.colour",
    }


@pytest.mark.parametrize(
    "field",
    [
        "original_median_shape.0",
        "configurations.0.median_shape.0",
        "configurations.0.patch_shape.0",
        "configurations.0.batch_size",
        "configurations.0.network.features.0",
        "configurations.0.network.kernels.0.0",
        "configurations.0.network.strides.0.0",
        "configurations.0.network.blocks.0",
        "configurations.0.network.decoder_blocks.0",
    ],
)
@pytest.mark.parametrize("number", [10**13 + 1, 10**400], ids=["large", "no float"])
def test_sizes_beyond_all_sense_are_told_in_place(fingerprint_of: MakeFingerprint, field: str, number: int) -> None:
    plan = plan_dataset(fingerprint_of([(100, 100, 100)] * 3, [(1, 1, 1)] * 3))
    with pytest.raises(DocumentError) as caught:
        read_document(Plan, broken(plan, {field: number}), where="plan.json")
    assert places(caught.value) == [field.replace("configurations.0", "2d")]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [1, [value]], lambda value: {"a": {"b": value}}])
def test_decisions_without_finite_values_are_refused(
    fingerprint_of: MakeFingerprint, wrap: Callable[[float], Any], number: float
) -> None:
    """They would be written as null, and read as something else."""
    plan = plan_dataset(fingerprint_of([(100, 100, 100)] * 3, [(1, 1, 1)] * 3))
    with pytest.raises(DocumentError) as caught:
        read_document(Plan, broken(plan, {"decisions.0.value": wrap(number)}), where="plan.json")
    assert places(caught.value) == ["decisions.0.value"]


def test_plans_whose_parts_disagree_are_refused(fingerprint_of: MakeFingerprint) -> None:
    plan = plan_dataset(fingerprint_of([(100, 100, 100)] * 3, [(1, 1, 1)] * 3))
    for changes, found in (
        ({"configurations.1.patch_shape": [100, 96, 96]}, "not divisible"),
        ({"configurations.1.data": "3d_fulres"}, "'3d_fulres', which the plan lacks"),
        ({"configurations.1.name": "2d"}, "must differ from each other"),
        ({"channels": ["a", "b"]}, "one a channel"),
        (
            {"configurations.1.network.strides.0": [2, 1, 1]},
            r"3d_fullres.network.strides: .* all ones, found \(2, 1, 1\)",
        ),
        (
            {"configurations.1.network.kernels.1": [2, 3, 4]},
            r"3d_fullres.network.kernels: .* must be odd, found \(2, 3, 4\)",
        ),
        ({"configurations.1.mirror_axes": [0, 0]}, "3d_fullres.mirror_axes: .* name an axis twice"),
        ({"configurations.1.data": "2d"}, "3d_fullres: is 3D, but data names '2d', which is 2D"),
        ({"configurations.1.next_stage": "2d"}, "3d_fullres: is 3D, but next_stage names '2d', which is 2D"),
    ):
        with pytest.raises(DocumentError, match=found):
            read_document(Plan, broken(plan, changes), where="plan.json")


def test_networks_of_another_datasets_interface_are_refused_at_once(fingerprint_of: MakeFingerprint) -> None:
    plan = plan_dataset(fingerprint_of([(150, 512, 512)] * 3, [(2.5, 0.8, 0.8)] * 3))
    names = [configuration.name for configuration in plan.configurations]
    changes = {
        "configurations.0.network.num_inputs": 7,
        "configurations.1.network.num_outputs": 77,
        f"configurations.{names.index('3d_cascade_fullres')}.network.num_inputs": 1,
    }
    with pytest.raises(DocumentError) as caught:
        read_document(Plan, broken(plan, changes), where="plan.json")
    told = str(caught.value)
    assert f"{names[0]}: num_inputs is 7, but the dataset has 1 channel" in told
    assert f"{names[1]}: num_outputs is 77, but the labels need 3" in told
    assert (
        "3d_cascade_fullres: num_inputs is 1, but the dataset has 1 channel and 2 labels of the previous stage" in told
    )


def test_regions_need_an_order() -> None:
    regions = (LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,)))
    with pytest.raises(ValueError, match="one value for each of the 2 regions"):
        Labels(classes=regions)
    assert Labels(classes=regions, region_order=(1, 2)).num_outputs == 2


def nnunet_files(**changes: Any) -> tuple[str, str]:
    folder = GOLDEN / "052"
    fingerprint = json.loads((folder / "fingerprint.json").read_text())
    dataset = json.loads((folder / "dataset.json").read_text())
    split: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for path, new in changes.items():
        kind, _, rest = path.partition("__")
        split[kind == "dataset"][rest.replace("__", ".")] = new
    return broken(fingerprint, split[0]), broken(dataset, split[1])


def test_numbers_beyond_all_sense_are_told_in_the_references_files_with_all_else() -> None:
    fingerprint, dataset = nnunet_files(
        fingerprint__shapes_after_crop__1__0=10**30,
        fingerprint__spacings__2__0=1e308,
        fingerprint__spacings__3__1=1e-9,
        dataset__numTraining=10**400,
        dataset__file_ending=3,
    )
    with pytest.raises(DocumentError) as caught:
        read_nnunet_dataset(
            fingerprint, dataset, fingerprint_where="my/fingerprint.json", dataset_where="my/dataset.json"
        )
    assert sorted(": ".join(line.split(": ")[:2]) for line in map(str, caught.value.issues)) == [
        "my/dataset.json: file_ending",
        "my/dataset.json: numTraining",
        "my/fingerprint.json: shapes_after_crop.1.0",
        "my/fingerprint.json: spacings.2.0",
        "my/fingerprint.json: spacings.3.1",
    ]


def test_each_faulty_label_of_the_reference_is_told_in_one_line() -> None:
    wrong = {"a": -1, "b": True, "c": 1.5, "d": "2", "e": [], "f": [1, False], "g": None, "h": [[1]]}
    with pytest.raises(DocumentError) as caught:
        read_nnunet_dataset(*nnunet_files(dataset__labels={"background": 0, **wrong}))
    told = "must be a non-negative integer or a list of them"
    assert [str(issue) for issue in caught.value.issues] == [
        f"dataset.json: labels.{name}: {told} (found {value!r})" for name, value in wrong.items()
    ]


def test_every_fault_of_the_references_files_is_told_in_place() -> None:
    fingerprint, dataset = nnunet_files(
        fingerprint__spacings__0=[1.0, -1.0, 1.0],
        fingerprint__shapes_after_crop__3=[1, 2, 0],
        fingerprint__median_relative_size=0.5,
        fingerprint__foreground_intensity_properties_per_channel__0__mean=float("nan"),
        dataset__numTraining=0,
        dataset__labels__class1=-1,
    )
    with pytest.raises(DocumentError) as caught:
        read_nnunet_dataset(fingerprint, dataset)
    told = str(caught.value)
    for place in (
        "dataset_fingerprint.json: spacings.0.1",
        "dataset_fingerprint.json: shapes_after_crop.3.2",
        "dataset_fingerprint.json: median_relative_size:",
        "dataset_fingerprint.json: foreground_intensity_properties_per_channel.0.mean",
        "dataset.json: numTraining",
        "dataset.json: labels.class1",
    ):
        assert place in told


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"dataset__labels": {"background": 0}}, "nothing to segment"),
        ({"dataset__labels": {"a": 1}}, "labels.background"),
        ({"dataset__labels": {"background": 0, "a": 1, "ignore": 4}}, "must be 2"),
        (
            {"dataset__labels": {"background": 0, "a": [1, 2]}, "dataset__regions_class_order": [1, 2]},
            r"2 values for 1 region \(",
        ),
        ({"dataset__labels": {"background": 0, "a": [1, 2]}, "dataset__regions_class_order": [5]}, "not label values"),
        ({"dataset__channel_names": {"0": "CT"}}, "has channels"),
        ({"dataset__channel_names": ...}, "name the channels"),
        ({"fingerprint__spacings": [[1.0, 1.0, 1.0]]}, "each case needs one of both"),
    ],
)
def test_reference_datasets_that_make_no_sense_are_refused(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(DocumentError, match=found):
        read_nnunet_dataset(*nnunet_files(**changes))


def test_label_values_with_gaps_become_internal_ones() -> None:
    labels = {"background": 0, "liver": 7, "spleen": 3, "organ too": [7], "nothing": [0], "ignore": 8}
    made = read_nnunet_dataset(*nnunet_files(dataset__labels=labels))
    fingerprint = made.fingerprint
    assert [(label.name, label.values) for label in fingerprint.labels.classes] == [("spleen", (1,)), ("liver", (2,))]
    assert (fingerprint.labels.ignore, fingerprint.num_label_entries) == (3, 6)
    assert made.file_values == (0, 3, 7, 8)


def test_regions_keep_their_order_and_a_missing_order_is_filled() -> None:
    labels = {"background": 0, "whole": [1, 2, 4], "core": [2, 4], "enhancing": 4}
    made = read_nnunet_dataset(*nnunet_files(dataset__labels=labels)).fingerprint.labels
    assert made.has_regions
    assert [label.values for label in made.classes] == [(1, 2, 3), (2, 3), (3,)]
    assert made.region_order == (1, 2, 3)
    given = read_nnunet_dataset(*nnunet_files(dataset__labels=labels, dataset__regions_class_order=[4, 2, 1]))
    assert given.fingerprint.labels.region_order == (3, 2, 1)


def test_modality_stands_for_channel_names_and_training_cases_may_differ() -> None:
    fingerprint, dataset = nnunet_files(
        dataset__channel_names=...,
        dataset__modality={"0": "A", "1": "CT"},
        dataset__numTraining=7,
        dataset__licence="x",
    )
    made = read_nnunet_dataset(fingerprint, dataset).fingerprint
    assert (made.channels, made.num_training_cases, len(made.cases)) == (("A", "CT"), 7, 300)


def test_more_label_entries_shrink_the_patch() -> None:
    entries = {f"label {i}": i for i in range(1, 300)}
    few = read_nnunet_dataset(*nnunet_files()).fingerprint
    many = read_nnunet_dataset(*nnunet_files(dataset__labels={"background": 0, **entries})).fingerprint
    assert few.num_label_entries == 4
    assert many.num_label_entries == 300
    small, large = (plan_dataset(made, strict_reference=True).configuration("2d") for made in (many, few))
    assert small.batch_size < large.batch_size


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        (
            {"configurations.3d_fullres.architecture.network_class_name": "Mine"},
            "3d_fullres.architecture.network_class",
        ),
        ({"configurations.3d_fullres.resampling_fn_data": "mine"}, "3d_fullres.resampling_fn_data"),
        ({"configurations.3d_fullres.normalization_schemes": ["CTNormalization"]}, "1 entries for 2 channels of"),
        ({"configurations.custom": {"inherits_from": "nothing"}}, "custom.inherits_from: 'nothing' is missing"),
        ({"configurations.custom": {"inherits_from": "custom"}}, "is circular"),
        ({"configurations.2d.architecture": ...}, "2d.architecture"),
        ({"transpose_forward": [0, 1, 3]}, "transpose_forward"),
        ({"original_median_shape_after_transp.0": 10**400}, "original_median_shape_after_transp.0"),
        ({"configurations.2d.batch_size": 10**400}, "2d.batch_size"),
        ({"configurations.2d.patch_size.0": 10**400}, "2d.patch_size.0"),
        (
            {"configurations.2d.architecture.arch_kwargs.kernel_sizes.1.0": 2**53 + 1},
            "2d.architecture.arch_kwargs.kernel_sizes.1.0",
        ),
        ({"configurations.2d.architecture.arch_kwargs.strides.1.0": 2**53}, "2d.architecture.arch_kwargs.strides.1.0"),
        (
            {"configurations.2d.architecture.arch_kwargs.features_per_stage.1": 2**53},
            "arch_kwargs.features_per_stage.1",
        ),
        ({"configurations.2d.architecture.arch_kwargs.n_conv_per_stage.0": 2**53}, "arch_kwargs.n_conv_per_stage.0"),
        (
            {"configurations.2d.architecture.arch_kwargs.n_conv_per_stage_decoder.0": 10**9},
            "n_conv_per_stage_decoder.0",
        ),
    ],
)
def test_faults_of_a_reference_plan_are_told_in_place(changes: dict[str, Any], place: str) -> None:
    plans = json.loads((GOLDEN / "052" / "plans_default.json").read_text())
    with pytest.raises(DocumentError, match=place):
        read_nnunet_plans(broken(plans, changes), read_nnunet_dataset(*nnunet_files()), where="plans.json")


def test_custom_configurations_inherit() -> None:
    plans = json.loads((GOLDEN / "052" / "plans_default.json").read_text())
    text = broken(plans, {"configurations.big": {"inherits_from": "3d_fullres", "batch_size": 40}})
    plan = read_nnunet_plans(text, read_nnunet_dataset(*nnunet_files()))
    big, full = plan.configuration("big"), plan.configuration("3d_fullres")
    assert big == full.model_copy(update={"name": "big", "data": "big", "batch_size": 40})

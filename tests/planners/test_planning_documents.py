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
    Training,
    plan_dataset,
    read_document,
    read_nnunet_dataset,
    read_nnunet_plans,
    write_document,
)
from planners.fingerprint import count_ct
from planners.plan import Network

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


def test_channels_have_one_entry_each_and_evidence_may_be_missing(fingerprint_of: MakeFingerprint) -> None:
    made = fingerprint_of([(10, 20, 30)] * 2, [(1, 1, 1)] * 2, channels=("CT", "T1"))
    evidence = {"num_ct": 1, "num_other": 0, "num_unclear": 0}
    for changes, faults in (
        ({"ct_evidence": []}, []),
        ({"ct_evidence": [evidence, evidence]}, []),
        ({"ct_evidence": [evidence]}, ["ct_evidence"]),
        ({"intensities": []}, ["intensities"]),
        ({"cases.0.file_axes": [0, 2, 1]}, []),
        ({"cases.0.file_axes": [0, 1, 1]}, ["cases.0.file_axes"]),
    ):
        try:
            read_document(Fingerprint, broken(made, changes), where="fingerprint.json")
            found = []
        except DocumentError as error:
            found = places(error)
        assert found == faults


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


@pytest.mark.parametrize(
    ("field", "inside", "outside"),
    [
        ("patch_shape.0", (1, 2_000_000), (0, 2_000_001)),
        ("median_shape.0", (0.5, 1_000_000), (0, 1_000_000.5)),
        ("batch_size", (1, 10**12), (0, 10**12 + 1)),
        ("network.features.0", (1, 100_000), (0, 100_001)),
        ("network.blocks.0", (1, 100), (0, 101)),
        ("network.decoder_blocks.0", (1, 100), (0, 101)),
        ("network.kernels.0.0", (1, 31), (0, 32)),
        ("network.strides.1.0", (1, 16), (0, 17)),
        ("network.num_inputs", (1, 10**6), (0, -1)),
    ],
)
def test_the_smallest_and_largest_numbers_of_a_plan(
    fingerprint_of: MakeFingerprint, field: str, inside: tuple[float, float], outside: tuple[float, float]
) -> None:
    """A number that is taken by itself may be inconsistent with others, which is said of other places."""
    plan = plan_dataset(fingerprint_of([(100, 100, 100)] * 3, [(1, 1, 1)] * 3))

    def refused(value: float) -> bool:
        try:
            read_document(Plan, broken(plan, {f"configurations.0.{field}": value}), where="plan.json")
        except DocumentError as error:
            return f"2d.{field}" in places(error)
        return False

    assert [refused(value) for value in (*inside, *outside)] == [False, False, True, True]


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_networks_have_two_or_three_axes(axes: int) -> None:
    fields = {
        "family": "unet",
        "num_inputs": 1,
        "num_outputs": 2,
        "features": [4, 8],
        "kernels": [[3] * axes] * 2,
        "strides": [[1] * axes, [2] * axes],
        "blocks": [2, 2],
        "decoder_blocks": [2],
    }
    if axes in (2, 3):
        assert read_document(Network, json.dumps(fields), where="memory").strides[1] == (2,) * axes
    else:
        with pytest.raises(DocumentError):
            read_document(Network, json.dumps(fields), where="memory")


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"blocks": [2, 2]}, "blocks"),
        ({"kernels": [[3, 3]] * 2}, "kernels"),
        ({"strides": [[1, 1], [2, 2]]}, "strides"),
        ({"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]}, "strides"),
        ({"strides": [[1, 2], [2, 2], [2, 2]]}, "strides"),
        ({"kernels": [[3, 3], [3, 2], [3, 3]]}, "kernels"),
        ({"decoder_blocks": [2]}, "decoder_blocks"),
        ({"decoder_blocks": [2, 2, 2]}, "decoder_blocks"),
        ({"features": []}, "features"),
        ({"family": "transformer"}, "family"),
    ],
)
def test_stages_of_a_network_agree(changes: dict[str, Any], place: str) -> None:
    fields = {
        "family": "unet",
        "num_inputs": 1,
        "num_outputs": 2,
        "features": [4, 8, 16],
        "kernels": [[1, 3], [3, 3], [3, 3]],
        "strides": [[1, 1], [1, 2], [2, 2]],
        "blocks": [2, 2, 2],
        "decoder_blocks": [2, 2],
    }
    assert read_document(Network, json.dumps(fields), where="memory").features == (4, 8, 16)
    with pytest.raises(DocumentError) as caught:
        read_document(Network, json.dumps(fields | changes), where="memory")
    assert places(caught.value) == [place]


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


def test_stages_that_lead_back_to_themselves_are_refused_and_others_are_found(
    fingerprint_of: MakeFingerprint,
) -> None:
    plan = plan_dataset(fingerprint_of([(300, 512, 512)] * 5, [(0.8, 0.8, 0.8)] * 5))
    names = [configuration.name for configuration in plan.configurations]
    low, cascade = map(names.index, ("3d_lowres", "3d_cascade_fullres"))
    assert [each.name for each in plan.chain("3d_cascade_fullres")] == ["3d_lowres", "3d_cascade_fullres"]
    assert [each.name for each in plan.chain("3d_fullres")] == ["3d_fullres"]
    changes = {
        f"configurations.{low}.previous_stage": "3d_cascade_fullres",
        f"configurations.{low}.network.num_inputs": 3,
    }
    with pytest.raises(DocumentError) as caught:
        read_document(Plan, broken(plan, changes), where="plan.json")
    told = str(caught.value)
    assert "3d_lowres: its previous stages lead back to itself" in told
    assert "3d_cascade_fullres: its previous stages lead back to itself" in told
    assert "3d_fullres: its previous" not in told
    for field in ("spacing_mm", "normalization", "resample_image", "resample_labels"):
        other = json.loads(write_document(plan))["configurations"][low if field == "spacing_mm" else cascade][field]
        if field == "normalization":
            other = [{"scheme": "none"}]
        elif field.startswith("resample"):
            other = {"order": 0, "order_z": 0}
        with pytest.raises(DocumentError, match=f"{field} of .*3d_cascade_fullres.* must be the same"):
            read_document(Plan, broken(plan, {f"configurations.{cascade}.{field}": other}), where="plan.json")
    with pytest.raises(DocumentError, match="2d: one normalization for each of 1 channel"):
        read_document(Plan, broken(plan, {"configurations.0.normalization": []}), where="plan.json")


def test_regions_need_an_order() -> None:
    regions = (LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,)))
    for order in (None, (1,), (1, 2, 1)):
        with pytest.raises(ValueError, match="one value for each of the 2 regions"):
            Labels(classes=regions, region_order=order)
    made = Labels(classes=regions, region_order=(1, 2), ignore=3)
    assert (made.num_outputs, made.num_entries, made.values) == (2, 4, (1, 2))


def test_classes_and_their_values() -> None:
    one, two, gap = (LabelClass(name=str(value), values=(value,)) for value in (1, 2, 3))
    made = Labels(classes=(two, one))
    assert (made.num_outputs, made.num_entries, made.values, made.has_regions) == (3, 3, (1, 2), False)
    with pytest.raises(ValueError, match=r"without a gap, found \(1, 3\)"):
        Labels(classes=(one, gap))
    with pytest.raises(ValueError, match="must differ from each other"):
        Labels(classes=(one, two.model_copy(update={"name": "1"})))
    with pytest.raises(ValueError, match="must be 3, one above the others, found 4"):
        Labels(classes=(one, two), ignore=4)
    with pytest.raises(ValueError, match="only for regions"):
        Labels(classes=(one, two), region_order=(1, 2))


def regions(*values: tuple[int, ...], order: tuple[int, ...]) -> Labels:
    classes = tuple(LabelClass(name=f"region {i}", values=each) for i, each in enumerate(values))
    return Labels(classes=classes, region_order=order)


def test_regions_overlap_where_writing_one_after_the_other_loses_a_value() -> None:
    assert regions((1, 2), (2,), order=(1, 2)).overlaps == ()
    assert regions((1, 2, 3), (2, 3), (3,), order=(1, 2, 3)).overlaps == ()
    # the value that the last region writes is its own alone, so that the first region loses what they share
    assert regions((1, 2), (2, 3), order=(1, 3)).overlaps == (((0, 1), 2),)
    assert regions((1, 2), (2, 3), order=(1, 2)).overlaps == ()
    # two values of the same regions cannot be told apart anyway
    assert regions((1, 2, 3), (2, 3, 4), order=(1, 4)).overlaps == ()


def test_ct_is_counted_by_kind_and_what_was_told_apart() -> None:
    kinds = [(True, True), (True, False), (True, False), (False, True), (False, False), (None, False)]
    evidence = count_ct([*kinds, (False, True), (False, False), (False, False), (None, True)])
    assert (evidence.num_ct, evidence.num_other, evidence.num_unclear, evidence.num_other_told) == (3, 5, 2, 2)


@pytest.mark.parametrize(("letters", "shown"), [(78, "'" + 78 * "x" + "'"), (79, "'" + 76 * "x" + "...")])
def test_long_values_are_cut_to_80_characters(letters: int, shown: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read_document(LabelClass, json.dumps({"name": "a", "values": letters * "x"}), where="memory")
    assert caught.value.issues[0].message.endswith(f"(found {shown})")


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"steps_per_epoch": 11}, "steps_per_epoch"),
        ({"warmup_steps": 10}, "warmup_steps"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"num_steps": 0}, "num_steps"),
        ({"momentum": 1.01}, "momentum"),
        ({"foreground_share": -0.01}, "foreground_share"),
        ({"gradient_clip": 0.0}, "gradient_clip"),
        ({"weight_decay": -1e-9}, "weight_decay"),
        ({"validation_batches": -1}, "validation_batches"),
        ({"augmentation": ["unheard of"]}, "augmentation"),
    ],
)
def test_bounds_of_a_training(changes: dict[str, Any], place: str) -> None:
    fields = {
        "configuration": "2d",
        "base_features": 1,
        "batch_size": 1,
        "num_steps": 10,
        "steps_per_epoch": 10,
        "precision": "float32",
        "optimiser": "sgd",
        "peak_learning_rate": 0.1,
        "momentum": 1.0,
        "weight_decay": 0.0,
        "warmup_steps": 9,
        "curve": "cosine",
        "gradient_clip": 1.0,
        "deep_supervision": True,
        "mirroring": True,
        "augmentation": True,
        "foreground_share": 0.0,
        "validation_batches": 0,
    }
    assert not read_document(Training, json.dumps(fields), where="memory").compiled
    with pytest.raises(DocumentError) as caught:
        read_document(Training, json.dumps(fields | changes), where="memory")
    assert all(found.startswith(place) for found in places(caught.value))


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
    twice = nnunet_files(dataset__labels={"background": 0, "whole": [1, 2], "same": [1, 2]})
    assert read_nnunet_dataset(*twice).fingerprint.labels.region_order == (1, 1)
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


@pytest.mark.parametrize(("number", "is_shown"), [(26, True), (27, False)])
def test_long_lists_are_left_out_of_messages(number: int, is_shown: bool) -> None:
    with pytest.raises(DocumentError) as caught:
        read_document(LabelClass, json.dumps({"name": number * [1], "values": [1]}), where="memory")
    assert ("(found" in caught.value.issues[0].message) is is_shown

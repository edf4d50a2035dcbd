"""What a person edits in plans and schedules: what follows from it, what is refused, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planners import (
    Conditions,
    DocumentError,
    Fingerprint,
    Measurement,
    Plan,
    PlanningError,
    Schedule,
    edited_plan,
    edited_schedule,
    explain,
    find_edits,
    plan_dataset,
    plan_schedule,
    read_document,
    write_document,
)

MakeFingerprint = Callable[..., Fingerprint]
MEASURED = [(32, 2.0), (16, 0.7), (8, 0.3)]


@pytest.fixture(scope="module")
def own(fingerprint_of: MakeFingerprint) -> Plan:
    """With low resolution, cascade and V-Net."""
    return plan_dataset(fingerprint_of([(300, 512, 512)] * 5, [(0.8, 0.8, 0.8)] * 5))


@pytest.fixture(scope="module")
def schedule(own: Plan) -> Schedule:
    measurements = tuple(
        Measurement(
            configuration=name, base_features=width, batch_size=2, precision="float32", step_s=seconds, case_s=1.0
        )
        for name in ("3d_fullres", "2d")
        for width, seconds in MEASURED
    )
    conditions = Conditions(
        device="cpu",
        num_threads=2,
        budget_s=20 * 3600.0,
        elapsed_s=0.0,
        num_folds=2,
        num_training_cases=5,
        num_test_cases=0,
        cross_validated=True,
        measurements=measurements,
        seed=0,
    )
    return plan_schedule(own, conditions)


def changed(before: Any, after: Any) -> dict[str, Any]:
    return {edit.path: edit.value for edit in find_edits(before, after)}


def test_fields_without_followers_change_alone(own: Plan) -> None:
    wishes = {"3d_fullres.batch_size": "4", "3d_fullres.patch_shape": "64,160,160", "2d.loss.voxel": "none"}
    edited = edited_plan(own, wishes)
    assert changed(own, edited) == {
        "3d_fullres.batch_size": 4,
        "3d_fullres.patch_shape": [64, 160, 160],
        "2d.loss.voxel": None,
    }
    assert edited.decisions == own.decisions
    assert edited_plan(own, {}) == own


def test_a_field_without_a_configuration_concerns_all_and_one_with_it_wins(own: Plan) -> None:
    edited = edited_plan(own, {"2d.mirror_axes": "1", "mirror_axes": ""})
    assert {c.name: c.mirror_axes for c in edited.configurations} == {
        c.name: ((1,) if c.name == "2d" else ()) for c in own.configurations
    }


def test_spacing_and_normalization_hold_for_all_that_read_the_data_and_the_median_shape_follows(own: Plan) -> None:
    edited = edited_plan(own, {"3d_cascade_fullres.spacing_mm": "1.6, 0.8, 0.4", "3d_fullres.normalization": "ct"})
    for configuration in edited.configurations:
        before = own.configuration(configuration.name)
        if configuration.data != "3d_fullres":
            assert configuration == before
            continue
        assert configuration.spacing_mm == (1.6, 0.8, 0.4)
        assert configuration.median_shape == (150.0, 512.0, 1024.0)
        assert [channel.scheme for channel in configuration.normalization] == ["ct"]
        assert (configuration.patch_shape, configuration.network) == (before.patch_shape, before.network)


@pytest.mark.parametrize("family", ["unet", "residual_unet", "vnet"])
def test_a_topology_is_planned_as_the_rules_would(own: Plan, family: str) -> None:
    name = {"unet": "3d_fullres", "residual_unet": "3d_fullres", "vnet": "3d_fullres_vnet"}[family]
    presets: dict[str, Any] = {"unet": "default", "residual_unet": "resenc", "vnet": "default"}
    planned = plan_dataset(_fingerprint(own), preset=presets[family]).configuration(name)
    patch = ",".join(map(str, planned.patch_shape))
    edited = edited_plan(own, {"3d_fullres.topology": family, "3d_fullres.patch_shape": patch})
    found = edited.configuration("3d_fullres")
    for field in ("network", "patch_shape", "deep_supervision", "loss"):
        assert getattr(found, field) == getattr(planned, field)


def _fingerprint(plan: Plan) -> Fingerprint:
    from planners import CaseSize

    cases = tuple(CaseSize(case_id=str(i), shape=(300, 512, 512), spacing_mm=(0.8, 0.8, 0.8)) for i in range(5))
    return Fingerprint(
        dataset_name=plan.dataset_name,
        cases=cases,
        num_training_cases=5,
        channels=plan.channels,
        labels=plan.labels,
        intensities=plan.intensities,
        median_relative_size_after_cropping=1.0,
    )


def test_a_patch_that_the_network_cannot_halve_is_refused_with_the_nearest_that_it_can(own: Plan) -> None:
    for wishes in ({}, {"3d_fullres.topology": "vnet"}):
        with pytest.raises(PlanningError) as raised:
            edited_plan(own, {"3d_fullres.patch_shape": "100,100,100", **wishes})
        (issue,) = raised.value.issues
        assert issue.code == "plan.edit_inconsistent"
        assert "96, 96, 96" in str(issue) or "96,96,96" in str(issue)
    for wishes in ({}, {"3d_fullres.topology": "vnet"}):
        edited_plan(own, {"3d_fullres.patch_shape": "96,96,96", **wishes})


@settings(max_examples=60, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 300)] * 3), family=st.sampled_from([None, "unet", "residual_unet", "vnet"]))
def test_every_patch_is_taken_or_the_ones_that_are_offered_are(own: Plan, shape: Any, family: str | None) -> None:
    def wishes(patch: str) -> dict[str, str]:
        topology = {} if family is None else {"3d_fullres.topology": family}
        return {"3d_fullres.patch_shape": patch, **topology}

    try:
        edited = edited_plan(own, wishes(",".join(map(str, shape))))
    except PlanningError as error:
        refusal = error
    else:
        assert edited.configuration("3d_fullres").patch_shape == shape
        assert read_document(Plan, write_document(edited), where="memory") == edited
        return
    if family is not None:
        (issue,) = refusal.issues
        for offered in issue.fix.partition(" to ")[2].split(" or "):
            edited_plan(own, wishes(offered))


def test_everything_wrong_is_said_at_once(own: Plan) -> None:
    wishes = {
        "3d_fullres.batch_size": "many",
        "3d_fullres.topology": "transformer",
        "3d_fulres.batch_size": "2",
        "colour": "red",
        "3d_fullres.spacing_mm": "1,1,1",
        "3d_cascade_fullres.spacing_mm": "2,2,2",
        "2d.batch_size": "-1",
        "2d.mirror_axes": "0,2",
    }
    with pytest.raises(PlanningError) as raised:
        edited_plan(own, wishes)
    found = {(issue.code, issue.where) for issue in raised.value.issues}
    assert found == {
        ("plan.edit_value", "3d_fullres.batch_size"),
        ("plan.edit_value", "3d_fullres.topology"),
        ("plan.edit_unknown", "3d_fulres.batch_size"),
        ("plan.edit_unknown", "colour"),
        ("plan.edit_conflict", "3d_cascade_fullres.spacing_mm"),
        ("plan.edit_value", "2d.batch_size"),
        ("plan.edit_inconsistent", "2d.mirror_axes"),
    }
    unknown = next(issue for issue in raised.value.issues if issue.where == "colour")
    assert "patch_shape" in unknown.fix
    assert "3d_cascade_fullres" in unknown.fix


def test_schedules_are_edited_for_one_configuration_or_all(schedule: Schedule) -> None:
    edited = edited_schedule(schedule, {"num_steps": "60", "3d_fullres.batch_size": "3"})
    for training in edited.trainings:
        assert (training.num_steps, training.steps_per_epoch, training.warmup_steps) == (60, 60, 6)
    assert edited.training("3d_fullres").batch_size == 3
    assert edited.expected_training_s < schedule.expected_training_s
    assert edited_schedule(schedule, {}) == schedule


def test_the_expected_time_follows_steps_width_and_batch(schedule: Schedule) -> None:
    """84 steps and the pseudo-Dice's 16; 20 features of batches of four, by the 0.7 s of 16 features and two images."""
    wishes = {"num_steps": "84", "base_features": "20", "batch_size": "4"}
    edited = edited_schedule(schedule, wishes)
    each_s = (84 + 16) * 0.7 * 2 * (20 / 16) * (4 / 2)
    assert edited.expected_training_s == pytest.approx(each_s * len(schedule.trainings))
    unmeasured = schedule.model_copy(
        update={
            "conditions": schedule.conditions.model_copy(update={"measurements": measurements_of_another(schedule)})
        }
    )
    steps, width = (getattr(schedule.trainings[0], name) for name in ("num_steps", "base_features"))
    halved = edited_schedule(unmeasured, {"num_steps": str(steps // 2), "batch_size": "6"})
    share = (steps // 2) * width * 6 / (steps * width * schedule.trainings[0].batch_size)
    assert halved.expected_training_s == pytest.approx(schedule.expected_training_s * share)


def measurements_of_another(schedule: Schedule) -> tuple[Measurement, ...]:
    (first, *_) = schedule.conditions.measurements
    return (first.model_copy(update={"configuration": "another"}),)


def test_fields_that_length_and_width_imply_can_be_set_too(schedule: Schedule) -> None:
    training = edited_schedule(schedule, {"num_steps": "60", "warmup_steps": "59"}).trainings[0]
    assert (training.warmup_steps, training.steps_per_epoch) == (59, 60)
    longer = edited_schedule(schedule, {"num_steps": "100000"}).trainings[0]
    before = schedule.trainings[0]
    assert (longer.warmup_steps, longer.steps_per_epoch) == (before.warmup_steps, before.steps_per_epoch)
    other = edited_schedule(schedule, {"base_features": "64", "optimiser": "sgd"}).trainings[0]
    assert other.peak_learning_rate == before.peak_learning_rate


def test_epochs_have_the_methods_length(schedule: Schedule) -> None:
    training = edited_schedule(schedule, {"3d_fullres.epochs": "40"}).training("3d_fullres")
    assert (training.num_steps, training.steps_per_epoch) == (10_000, 250)


def test_the_learning_rate_follows_the_width_unless_it_is_set(schedule: Schedule) -> None:
    narrow, wide = (edited_schedule(schedule, {"base_features": width}) for width in ("16", "64"))
    rates = [each.training("3d_fullres").peak_learning_rate for each in (narrow, wide)]
    assert rates == pytest.approx([4e-3, 1e-3])
    given = edited_schedule(schedule, {"base_features": "64", "peak_learning_rate": "0.1"})
    assert given.training("3d_fullres").peak_learning_rate == 0.1


@pytest.mark.parametrize(
    ("wishes", "code"),
    [
        ({"num_steps": "0"}, "plan.edit_value"),
        ({"epochs": "1.5"}, "plan.edit_value"),
        ({"mirroring": "perhaps"}, "plan.edit_value"),
        ({"colour": "red"}, "plan.edit_unknown"),
        ({"warmup_steps": "10", "num_steps": "10"}, "plan.edit_inconsistent"),
        ({"epochs": "2", "num_steps": "10"}, "plan.edit_conflict"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(schedule: Schedule, wishes: dict[str, str], code: str) -> None:
    with pytest.raises(PlanningError) as raised:
        edited_schedule(schedule, wishes)
    assert {issue.code for issue in raised.value.issues} == {code}


def test_a_value_that_is_refused_is_answered_by_the_present_one(own: Plan, schedule: Schedule) -> None:
    few = edited_schedule(schedule, {"num_steps": "100"})
    epochs = edited_schedule(schedule, {"epochs": "7"})
    refused: tuple[tuple[Any, str, str], ...] = (
        (few, "epochs", "give e.g. epochs=1"),
        (epochs, "epochs", "give e.g. epochs=7"),
        (own, "2d.mirror_axes", "give e.g. 2d.mirror_axes=0,1"),
        (own, "2d.normalization", "give e.g. 2d.normalization=zscore"),
        (own, "2d.loss.voxel", "give e.g. 2d.loss.voxel=cross_entropy"),
        (own, "3d_fullres.topology", "give e.g. 3d_fullres.topology=unet"),
        (own, "2d.deep_supervision", "give e.g. 2d.deep_supervision=true"),
    )
    for before, wish, fix in refused:
        edited = edited_plan if before is own else edited_schedule
        with pytest.raises(PlanningError) as raised:
            edited(before, {wish: "1.5"})
        assert [issue.fix for issue in raised.value.issues] == [fix]


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("2d.batch_size", " 7 ", 7),
        ("2d.mirror_axes", "[1]", (1,)),
        ("2d.mirror_axes", "", ()),
        ("2d.loss.voxel", " none ", None),
        ("2d.loss.voxel", " focal ", "focal"),
        ("2d.deep_supervision", "false", False),
        ("2d.patch_shape", "512, 256", (512, 256)),
    ],
)
def test_values_are_written_as_json_or_with_commas(own: Plan, path: str, text: str, value: Any) -> None:
    configuration = edited_plan(own, {path: text}).configuration("2d")
    field = path.removeprefix("2d.")
    found = configuration.loss.voxel if field == "loss.voxel" else getattr(configuration, field)
    assert found == value


def test_masks_stay_with_channels_that_are_z_scored(fingerprint_of: MakeFingerprint) -> None:
    cropped = plan_dataset(fingerprint_of([(40, 50, 60)], [(1, 1, 1)], channels=("MRI", "MRI"), relative_size=0.5))
    edited = edited_plan(cropped, {"normalization": "ct,zscore"}).configurations[0].normalization
    assert [(channel.scheme, channel.use_mask) for channel in edited] == [("ct", False), ("zscore", True)]


def test_the_loss_stays_with_its_family_and_heads_follow_it_unless_they_are_set(own: Plan) -> None:
    focal = edited_plan(own, {"3d_fullres.loss.voxel": "focal"})
    again = edited_plan(focal, {"3d_fullres.topology": "unet"}).configuration("3d_fullres")
    other = edited_plan(focal, {"3d_fullres.topology": "residual_unet"}).configuration("3d_fullres")
    vnet = edited_plan(focal, {"3d_fullres.topology": "vnet"}).configuration("3d_fullres")
    assert [each.loss.voxel for each in (again, other, vnet)] == ["focal", "cross_entropy", None]
    assert (again.deep_supervision, vnet.deep_supervision) == (True, False)
    single = {"3d_fullres.topology": "residual_unet", "3d_fullres.deep_supervision": "false"}
    assert not edited_plan(own, single).configuration("3d_fullres").deep_supervision


def test_spacings_coarser_than_a_case_leave_a_voxel_and_missing_ones_are_refused(own: Plan) -> None:
    coarse = edited_plan(own, {"3d_lowres.spacing_mm": "1000,1,1"}).configuration("3d_lowres")
    assert coarse.median_shape[0] == 1.0
    for wish in ({"3d_lowres.spacing_mm": "1,1"}, {"3d_lowres.patch_shape": "64,64"}):
        with pytest.raises(PlanningError) as raised:
            edited_plan(own, {**wish, "3d_lowres.topology": "unet"})
        assert {issue.code for issue in raised.value.issues} == {"plan.edit_inconsistent"}


def test_the_strides_that_are_set_need_not_be_those_of_the_family(own: Plan) -> None:
    wishes = {"3d_fullres.topology": "unet", "3d_fullres.patch_shape": "100,100,100"}
    halved = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [1, 1, 1], [1, 1, 1]]
    edited = edited_plan(own, {**wishes, "3d_fullres.strides": str(halved)}).configuration("3d_fullres")
    assert edited.network.strides == tuple(map(tuple, halved))


def test_edits_are_said_with_what_the_rules_give(own: Plan) -> None:
    edited = edited_plan(own, {"2d.mirror_axes": "", "2d.loss.voxel": "none"})
    assert [str(edit) for edit in find_edits(own, edited)] == [
        "2d.loss.voxel is none; the rules give cross_entropy",
        "2d.mirror_axes is empty; the rules give 0,1",
    ]
    (back, *_) = (edit for edit in find_edits(edited, own) if edit.path == "2d.mirror_axes")
    assert str(back) == "2d.mirror_axes is 0,1; the rules give nothing"


def test_prose_is_no_edit_and_a_configuration_that_is_missing_is_one(own: Plan) -> None:
    reworded = own.model_copy(
        update={"decisions": tuple(d.model_copy(update={"reason": "because"}) for d in own.decisions)}
    )
    assert find_edits(own, reworded) == ()
    names = [c.name for c in own.configurations]
    fewer = own.model_copy(update={"configurations": own.configurations[:1]})
    (edit,) = find_edits(own, fewer)
    assert (edit.path, edit.own, edit.value) == ("configurations", names, names[:1])


def test_the_explanation_shows_edits_beside_what_the_rules_give(own: Plan) -> None:
    edited = edited_plan(own, {"3d_fullres.patch_shape": "64,160,160"}).model_copy(update={"dataset_name": "mine"})
    page = explain(edited, own=own)
    before, _, after = page.partition("Edited: 3d_fullres.patch_shape is 64,160,160; the rules give ")
    assert "* Patch size:" in before.rpartition("3d_fullres: 3D U-Net")[2]
    assert after.split("\n")[1].strip().startswith("[patch.shape")
    assert "Edited: dataset_name is mine; the rules give drawn." in page
    assert "Edited" not in explain(own, own=own)
    assert "Edited" not in explain(edited)


def test_a_plan_edited_by_hand_is_refused_with_all_that_does_not_fit(own: Plan) -> None:
    broken = own.model_copy(
        update={
            "configurations": tuple(
                c.model_copy(
                    update={"spacing_mm": (9.0, 9.0, 9.0)} if c.name == "3d_cascade_fullres" else {"batch_size": 0}
                )
                for c in own.configurations
            )
        }
    )
    with pytest.raises(DocumentError) as raised:
        read_document(Plan, write_document(broken), where="plan.json")
    assert len(raised.value.issues) == len(own.configurations) - 1
    mixed = own.model_copy(
        update={
            "configurations": tuple(
                c.model_copy(update={"spacing_mm": (9.0, 9.0, 9.0)}) if c.name == "3d_cascade_fullres" else c
                for c in own.configurations
            )
        }
    )
    with pytest.raises(DocumentError, match=r"spacing_mm of 3d_fullres, 3d_cascade_fullres.* must be the same"):
        read_document(Plan, write_document(mixed), where="plan.json")

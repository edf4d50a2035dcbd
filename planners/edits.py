"""Edits of plans and schedules: what can be set, what follows from it, and what was edited."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError

from planners.document import Document, Issue, PlanningError, essence, issues_of
from planners.geometry import nearest_multiples
from planners.plan import ChannelNormalization, Configuration, Loss, Network, NormalizationScheme, Plan
from planners.registry import TOPOLOGIES
from planners.rules.loss import decide_deep_supervision
from planners.schedule.candidates import METHOD_STEPS_PER_EPOCH, short_learning_rate
from planners.schedule.cost import measurements_of, training_s
from planners.schedule.documents import Schedule, Training

SHARED_FIELDS = ("spacing_mm", "normalization")
"""Of the preprocessed data: set for one configuration they hold for all that read the same data."""
NETWORK_FIELDS = ("features", "blocks", "decoder_blocks", "kernels", "strides")
LOSS_FIELDS = ("name", "region", "voxel", "batch_dice")
PLAN_FIELDS = (
    *("patch_shape", "spacing_mm", "batch_size", "normalization", "mirror_axes", "deep_supervision", "topology"),
    *NETWORK_FIELDS,
    *(f"loss.{name}" for name in LOSS_FIELDS),
)
"""What can be set of a configuration of a plan."""
SCHEDULE_FIELDS = (
    *("epochs", "num_steps", "base_features", "batch_size", "mirroring", "augmentation", "foreground_share"),
    *("optimiser", "peak_learning_rate", "curve", "warmup_steps", "momentum", "weight_decay", "gradient_clip"),
    "averaged_share",
)
"""What can be set of a training of a schedule."""

D = TypeVar("D", bound=Document)
Values = dict[str, Any]
"""New values of one configuration or training by field."""


class Edit(Document):
    """One field in which a plan or schedule differs from the rules' own."""

    path: str
    """``3d_fullres.patch_shape``; without a configuration for fields of the whole document."""
    own: JsonValue
    """The value that the rules give."""
    value: JsonValue
    """The value that was set."""

    def __str__(self) -> str:
        return f"{self.path} is {as_text(self.value) or 'empty'}; the rules give {as_text(self.own) or 'nothing'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Assignment:
    """One assignment, parsed."""

    path: str
    """As it was given."""
    names: tuple[str, ...]
    """Configurations that it concerns."""
    field: str
    value: Any


def edited_plan(plan: Plan, assignments: Mapping[str, str]) -> Plan:
    """``plan`` with the fields of `PLAN_FIELDS` that ``assignments`` set: ``{"3d_fullres.patch_shape": "64,160,160"}``.

    Without a configuration, all of them are set. Values are written with commas (``1,0.8,0.8``; empty for none),
    or as JSON. What depends on a field follows it:

    - ``patch_shape`` must be divisible by the network's total strides; the network stays.
    - ``spacing_mm`` and ``normalization`` (one scheme a channel) hold for all configurations that read the same
      preprocessed data; the median shape follows the spacing, patch and network stay.
    - ``topology`` plans the network again by that family's rules, for the patch and spacing set or planned, and with it
      deep supervision and the terms of the loss; setting the family that is planned already replans its stages.
    - Other fields replace the planned value and must fit the rest.

    Decisions are kept. Raises `PlanningError` with everything that is wrong.
    """
    issues: list[Issue] = []
    configurations = {configuration.name: configuration for configuration in plan.configurations}
    values = _values_by_name(_with_shared_data(_parse(assignments, configurations, PLAN_FIELDS, issues), plan, issues))
    edited = [_edited_configuration(c, values.get(c.name, {}), issues) for c in plan.configurations]
    return _validated(plan, {"configurations": tuple(edited)}, issues)


def edited_schedule(schedule: Schedule, assignments: Mapping[str, str]) -> Schedule:
    """``schedule`` with the fields of `SCHEDULE_FIELDS` that ``assignments`` set: ``{"3d_fullres.num_steps": "5000"}``.

    Without a configuration, all trainings are set. What depends on a field follows it unless it is set too:

    - ``epochs`` counts epochs of 250 steps, as the method does, and sets ``num_steps`` and ``steps_per_epoch``.
    - ``num_steps`` keeps warm-up below a tenth of the steps, and epochs not longer than the training.
    - ``base_features`` lowers the peak learning rate of AdamW in proportion for wider networks, as the rules do.

    The expected time follows the measured one of a step. Raises `PlanningError` with everything that is wrong.
    """
    issues: list[Issue] = []
    trainings = {training.configuration: training for training in schedule.trainings}
    values = _values_by_name(_parse(assignments, trainings, SCHEDULE_FIELDS, issues))
    issues += [
        Issue(
            code="plan.edit_conflict",
            where=f"{name}.epochs",
            message="epochs and num_steps both set the length of the training",
            fix="set one of them only",
        )
        for name, given in values.items()
        if {"epochs", "num_steps"} <= given.keys()
    ]
    edited = tuple(_edited_training(training, values.get(name, {})) for name, training in trainings.items())
    old_s, new_s = (sum(_training_s(each, schedule) for each in some) for some in (schedule.trainings, edited))
    factor = new_s / old_s if edited != schedule.trainings else 1
    expected_s = schedule.expected_training_s * factor
    return _validated(schedule, {"trainings": edited, "expected_training_s": expected_s}, issues)


def unknown_fields(document: Literal["plan", "schedule"], assignments: Mapping[str, str]) -> tuple[Issue, ...]:
    """An issue for each assignment that no plan or schedule could have, whatever its configurations are called."""
    fields = PLAN_FIELDS if document == "plan" else SCHEDULE_FIELDS
    return tuple(
        Issue(
            code="plan.edit_unknown",
            where=f"{document}.{path}",
            message="no such field can be set",
            fix=f"set one of {', '.join(fields)}, of all configurations ({document}.{fields[0]}) or of one "
            f"({document}.CONFIGURATION.{fields[0]})",
        )
        for path in assignments
        if not {path, path.partition(".")[2]} & set(fields)
    )


def refuse_bad_assignments(trainings: Sequence[Training], assignments: Mapping[str, str]) -> None:
    """Raise `PlanningError` for assignments to a schedule of ``trainings`` that name no field, or whose value is not one."""
    issues: list[Issue] = []
    parts = {training.configuration: training for training in trainings}
    _parse(assignments, parts, SCHEDULE_FIELDS, issues)
    if issues:
        raise PlanningError("the schedule cannot be edited this way", issues)


def find_edits(own: D, given: D) -> tuple[Edit, ...]:
    """The fields in which a plan or a schedule ``given`` differs from the ``own`` one of the rules; prose is ignored.

    Configurations that only one of the two has are one edit of ``configurations``, with their names. The median shape follows
    from the spacing and is no edit of its own.
    """
    before, after = _by_path(own), _by_path(given)
    names = {path: (before.get(path), after.get(path)) for path in dict.fromkeys((*before, *after))}
    common = set(_names(own)) & set(_names(given))
    edits = []
    for path, (planned, found) in names.items():
        name = path.partition(".")[0]
        alone = name in {*_names(own), *_names(given)} and name not in common
        if planned != found and not alone and not path.endswith(".median_shape"):
            edits.append(Edit(path=path, own=planned, value=found))
    return tuple(edits)


def as_text(value: JsonValue) -> str:
    """A value as it is written in an assignment: ``64,160,160``, ``true``, ``none``; lists of lists as JSON."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, list) and not any(isinstance(entry, list | dict) for entry in value):
        return ",".join(map(as_text, value))
    return json.dumps(value)


def _parse(
    assignments: Mapping[str, str],
    parts: Mapping[str, Configuration] | Mapping[str, Training],
    fields: Sequence[str],
    issues: list[Issue],
) -> list[_Assignment]:
    """All assignments that can be parsed; ``issues`` gets the others."""
    parsed = []
    for path, text in assignments.items():
        name, _, rest = path.partition(".")
        names, field = ((name,), rest) if name in parts else (tuple(parts), path)
        if field not in fields:
            issues.append(
                Issue(
                    code="plan.edit_unknown",
                    where=path,
                    message="no such field can be set",
                    fix=f"set one of {', '.join(fields)}, of all configurations or of one (e.g. {names[0]}.{fields[0]}); "
                    f"the configurations are {', '.join(parts)}",
                )
            )
            continue
        part = parts[names[0]]
        try:
            parsed.append(_Assignment(path=path, names=names, field=field, value=_parse_field(part, field, text)))
        except ValidationError as error:
            found = dict.fromkeys(str(each.get("ctx", {}).get("error", each["msg"])) for each in error.errors())
            issues.append(
                Issue(
                    code="plan.edit_value",
                    where=path,
                    message=f"{text!r} is not valid: {'; '.join(found)}",
                    fix=f"give e.g. {path}={as_text(_current(part, field))}",
                )
            )
    return parsed


def _parse_field(part: Configuration | Training, field: str, text: str) -> Any:
    if isinstance(part, Configuration) and field == "normalization":
        schemes = _parse_value(tuple[NormalizationScheme, ...], text)
        masked = any(channel.use_mask for channel in part.normalization)
        return tuple(ChannelNormalization(scheme=each, use_mask=masked and each == "zscore") for each in schemes)
    model: type[Document] = type(part)
    if field == "topology" or field in NETWORK_FIELDS:
        model = Network
    elif field.startswith("loss."):
        model = Loss
    info = model.model_fields[{"topology": "family", "epochs": "num_steps"}.get(field, field.rpartition(".")[2])]
    return _parse_value(Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation, text)


def _parse_value(kind: Any, text: str) -> Any:
    """A value of type ``kind`` from its text, which is JSON, a JSON list without brackets, ``none`` or a word."""
    adapter: TypeAdapter[Any] = TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))
    words = json.dumps([word.strip() for word in text.split(",") if word.strip()])
    failed = None
    for candidate in (text, f"[{text}]", *["null"] * (text.strip() == "none"), json.dumps(text.strip()), words):
        try:
            return adapter.validate_json(candidate)
        except ValidationError as error:
            is_json = error.errors()[0]["type"] != "json_invalid"
            failed = error if failed is None or (is_json and failed.errors()[0]["type"] == "json_invalid") else failed
    raise failed or ValueError(text)


def _values_by_name(assignments: Sequence[_Assignment]) -> dict[str, Values]:
    """Values by configuration and field; one for a single configuration wins over one for all."""
    values: dict[str, Values] = {}
    for each in sorted(assignments, key=lambda each: each.path != each.field):
        for name in each.names:
            values.setdefault(name, {})[each.field] = each.value
    return values


def _with_shared_data(assignments: Sequence[_Assignment], plan: Plan, issues: list[Issue]) -> list[_Assignment]:
    """Assignments on preprocessed data, for all configurations that read it; two different ones are an issue."""
    spread, taken = [], dict[tuple[str, str], _Assignment]()
    for each in assignments:
        if each.field not in SHARED_FIELDS or each.path == each.field:
            spread.append(each)
            continue
        data = plan.configuration(each.names[0]).data
        other = taken.setdefault((data, each.field), each)
        if other.value != each.value:
            issues.append(
                Issue(
                    code="plan.edit_conflict",
                    where=each.path,
                    message=f"differs from {other.path}, but both read the same preprocessed data ({data})",
                    fix="set one of them only",
                )
            )
        readers = tuple(c.name for c in plan.configurations if c.data == data)
        spread.append(_Assignment(path=each.path, names=readers, field=each.field, value=each.value))
    return spread


def _edited_configuration(before: Configuration, values: Values, issues: list[Issue]) -> Configuration:
    """With its edits; not yet validated."""
    fields = {name: value for name, value in values.items() if name in Configuration.model_fields}
    edited = before.model_copy(update=fields)
    axes = before.dimensions
    if len(edited.spacing_mm) != axes or len(edited.patch_shape) != axes:
        return edited  # refused when the plan is validated
    if "spacing_mm" in fields:
        extents = zip(before.median_shape, before.spacing_mm, edited.spacing_mm, strict=True)
        median_shape = tuple(max(1.0, float(round(size * old / new))) for size, old, new in extents)
        edited = edited.model_copy(update={"median_shape": median_shape})
    if "topology" in values:
        edited = _with_topology(edited, values, issues)
    network = edited.network.model_copy(update={name: values[name] for name in NETWORK_FIELDS if name in values})
    terms = {name: values[f"loss.{name}"] for name in LOSS_FIELDS if f"loss.{name}" in values}
    return edited.model_copy(update={"network": network, "loss": edited.loss.model_copy(update=terms)})


def _with_topology(configuration: Configuration, values: Values, issues: list[Issue]) -> Configuration:
    """The network of a family for the patch, and what follows from the family."""
    topology, patch = TOPOLOGIES.get(values["topology"]), configuration.patch_shape
    name, network, loss = configuration.name, configuration.network, configuration.loss
    pyramid = topology.trainable_pyramid(configuration.spacing_mm, patch)

    def inconsistent(message: str, fix: str) -> None:
        issues.append(Issue(code="plan.edit_inconsistent", where=f"{name}.topology", message=message, fix=fix))

    if pyramid.patch != patch and "strides" not in values:
        smaller = nearest_multiples(patch, pyramid.divisors)[0]
        shapes = [
            as_text(list(shape))
            for shape in dict.fromkeys((smaller, pyramid.patch))
            if topology.trainable_pyramid(configuration.spacing_mm, shape).patch == shape
        ]
        found = (
            f"the patch {as_text(list(patch))} is not divisible by the total strides {as_text(list(pyramid.divisors))}"
        )
        inconsistent(found, f"set {name}.patch_shape to {' or '.join(shapes)}")
    if topology.most_stages is not None and pyramid.num_stages > topology.most_stages:
        found = f"a patch of {as_text(list(patch))} voxels has more than {topology.most_stages} stages"
        inconsistent(found, "set a smaller patch_shape")
    deep = decide_deep_supervision(topology, pyramid.num_stages, strict_reference=False).value
    if network.family != topology.name and topology.decide_loss is not None:
        loss = topology.decide_loss(loss.batch_dice).value
    elif network.family != topology.name:
        loss = Loss(batch_dice=loss.batch_dice)
    network = topology.describe(
        pyramid, configuration.spacing_mm, num_inputs=network.num_inputs, num_outputs=network.num_outputs
    )
    # the patch is that of the network until the plan is validated, so that a fault is reported once
    update = {"patch_shape": pyramid.patch, "network": network, "loss": loss}
    return configuration.model_copy(update={**update, "deep_supervision": values.get("deep_supervision", deep)})


def _edited_training(before: Training, values: Values) -> Training:
    given = dict(values)
    if "epochs" in given:
        given["num_steps"] = given["epochs"] * METHOD_STEPS_PER_EPOCH
        given["steps_per_epoch"] = METHOD_STEPS_PER_EPOCH
    if "num_steps" in given:
        steps = given["num_steps"]
        given.setdefault("warmup_steps", min(before.warmup_steps, steps // 10))
        given["steps_per_epoch"] = min(given.get("steps_per_epoch", before.steps_per_epoch), steps)
    optimiser = given.get("optimiser", before.optimiser)
    if "base_features" in given and optimiser == "adamw":
        change = short_learning_rate(given["base_features"]) / short_learning_rate(before.base_features)
        given.setdefault("peak_learning_rate", before.peak_learning_rate * change)
    return before.model_copy(update={name: value for name, value in given.items() if name in Training.model_fields})


def _training_s(training: Training, schedule: Schedule) -> float:
    """Duration by the measurement nearest to its width; only ratios of it are used."""
    options = measurements_of(schedule.conditions, training.configuration)
    if not options:
        return float(training.num_steps * training.base_features * training.batch_size)
    nearest = min(options, key=lambda m: abs(m.base_features - training.base_features))
    larger = training.base_features / nearest.base_features * training.batch_size / nearest.batch_size
    return training_s(nearest, training.num_steps, schedule.num_folds) * larger


def _validated(before: D, update: dict[str, Any], issues: list[Issue]) -> D:
    """``before`` with what was edited. Raises `PlanningError` with ``issues`` and all that does not fit."""
    document = before.model_copy(update=update).model_dump()
    try:
        valid = type(before).model_validate(document)
    except ValidationError as error:
        for each in issues_of(error, document=document):
            fix = each.fix or "set fields that fit each other"
            where = each.where.replace(".network.", ".")
            issues.append(each.model_copy(update={"code": "plan.edit_inconsistent", "where": where, "fix": fix}))
    if issues:
        raise PlanningError(f"the {type(before).__name__.lower()} cannot be edited this way", issues)
    return valid


def _current(part: Document, field: str) -> JsonValue:
    """The present value of a field that can be set, in plain JSON types."""
    if isinstance(part, Configuration) and field == "normalization":
        return [channel.scheme for channel in part.normalization]
    if isinstance(part, Training) and field == "epochs":
        return max(1, round(part.num_steps / METHOD_STEPS_PER_EPOCH))
    values = {path.partition(".")[2]: value for path, value in _flat(essence(part), "x")}
    found: JsonValue = values[field]
    return found


def _names(document: Document) -> tuple[str, ...]:
    if isinstance(document, Plan):
        return tuple(configuration.name for configuration in document.configurations)
    return tuple(training.configuration for training in document.trainings) if isinstance(document, Schedule) else ()


def _by_path(document: Document) -> dict[str, JsonValue]:
    """Every field that decides, by its short path."""
    plain = essence(document)
    paths: dict[str, JsonValue] = {}
    for key, value in plain.items():
        if key in ("configurations", "trainings"):
            paths["configurations"] = list(_names(document))
            for name, part in zip(_names(document), value, strict=True):
                paths |= dict(_flat(part, name))
        else:
            paths |= dict(_flat(value, key))
    return paths


def _flat(value: Any, path: str) -> Iterator[tuple[str, JsonValue]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for key, inner in value.items():
        name = "topology" if key == "family" else key
        yield from _flat(inner, path if key == "network" else f"{path}.{name}")

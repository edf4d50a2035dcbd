"""All that `planners` offers."""

from planners.decision import Decision, DecisionRecord
from planners.document import (
    PROSE,
    Document,
    DocumentError,
    Issue,
    PlanningError,
    Severity,
    essence,
    issues_of,
    read_document,
    write_document,
)
from planners.edits import Edit, edited_plan, edited_schedule, find_edits, refuse_bad_assignments
from planners.explanation import explain
from planners.finetuning import input_names, output_names, plan_finetuning
from planners.fingerprint import (
    CaseSize,
    ClassSize,
    CtEvidence,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    count_ct,
)
from planners.geometry import resampled_shape, transpose
from planners.interop.nnunet import NnunetDataset, read_nnunet_dataset
from planners.interop.nnunet_plans import NnunetModel, nnunet_plans, read_nnunet_model, read_nnunet_plans
from planners.memory import (
    MemoryEstimate,
    estimate_configuration_memory,
    estimate_disk,
    estimate_volume_memory,
)
from planners.plan import (
    ChannelNormalization,
    Configuration,
    Loss,
    Network,
    Plan,
    Resampling,
    configuration_spacing,
)
from planners.planner import plan_dataset
from planners.registry import AUGMENTATIONS, LOSSES, TOPOLOGIES, Preset, Registry, UnknownPartError
from planners.rules.intensity import normalization_scheme
from planners.rules.topology import why_untrainable
from planners.schedule.candidates import (
    budgeted_training,
    candidate_widths,
    method_configurations,
    method_training,
    preferred_configurations,
    short_batch_size,
    trial_training,
)
from planners.schedule.cost import compiling_may_pay
from planners.schedule.documents import (
    Conditions,
    Measurement,
    Precision,
    Revision,
    Schedule,
    Training,
    learning_rate,
    with_width,
)
from planners.schedule.planning import (
    DEFAULT_CPU_BUDGET_S,
    FEWEST_STEPS,
    describe_outlook,
    extend_schedule,
    find_short_budget,
    plan_schedule,
    wants_more_candidates,
)
from planners.schedule.revising import revise, steps_left_s, with_revisions
from planners.topology import Topology

__all__ = [
    "AUGMENTATIONS",
    "DEFAULT_CPU_BUDGET_S",
    "FEWEST_STEPS",
    "LOSSES",
    "PROSE",
    "TOPOLOGIES",
    "CaseSize",
    "ChannelNormalization",
    "ClassSize",
    "Conditions",
    "Configuration",
    "CtEvidence",
    "Decision",
    "DecisionRecord",
    "Document",
    "DocumentError",
    "Edit",
    "Fingerprint",
    "IntensityStatistics",
    "Issue",
    "LabelClass",
    "Labels",
    "Loss",
    "Measurement",
    "MemoryEstimate",
    "Network",
    "NnunetDataset",
    "NnunetModel",
    "Plan",
    "PlanningError",
    "Precision",
    "Preset",
    "Registry",
    "Resampling",
    "Revision",
    "Schedule",
    "Severity",
    "Topology",
    "Training",
    "UnknownPartError",
    "budgeted_training",
    "candidate_widths",
    "compiling_may_pay",
    "configuration_spacing",
    "count_ct",
    "describe_outlook",
    "edited_plan",
    "edited_schedule",
    "essence",
    "estimate_configuration_memory",
    "estimate_disk",
    "estimate_volume_memory",
    "explain",
    "extend_schedule",
    "find_edits",
    "find_short_budget",
    "input_names",
    "issues_of",
    "learning_rate",
    "method_configurations",
    "method_training",
    "nnunet_plans",
    "normalization_scheme",
    "output_names",
    "plan_dataset",
    "plan_finetuning",
    "plan_schedule",
    "preferred_configurations",
    "read_document",
    "read_nnunet_dataset",
    "read_nnunet_model",
    "read_nnunet_plans",
    "refuse_bad_assignments",
    "resampled_shape",
    "revise",
    "short_batch_size",
    "steps_left_s",
    "transpose",
    "trial_training",
    "wants_more_candidates",
    "why_untrainable",
    "with_revisions",
    "with_width",
    "write_document",
]

"""The front door of the pure core: what is known of a dataset -> what to do with it."""

from planners.decision import Decision, DecisionRecord
from planners.document import Document, DocumentError, describe_problems, read_document, write_document
from planners.fingerprint import CaseSize, Fingerprint, IntensityStatistics, LabelClass, Labels
from planners.plan import ChannelNormalization, Configuration, Loss, Network, Plan, Resampling
from planners.schedule import (
    Conditions,
    Measurement,
    Schedule,
    Training,
    candidate_widths,
    learning_rate,
    plan_schedule,
    preferred_configurations,
    short_batch_size,
    with_width,
)

__all__ = [
    "CaseSize",
    "ChannelNormalization",
    "Conditions",
    "Configuration",
    "Decision",
    "DecisionRecord",
    "Document",
    "DocumentError",
    "Fingerprint",
    "IntensityStatistics",
    "LabelClass",
    "Labels",
    "Loss",
    "Measurement",
    "Network",
    "Plan",
    "Resampling",
    "Schedule",
    "Training",
    "candidate_widths",
    "describe_problems",
    "learning_rate",
    "plan_schedule",
    "preferred_configurations",
    "read_document",
    "short_batch_size",
    "with_width",
    "write_document",
]

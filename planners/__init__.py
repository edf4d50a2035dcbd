"""The front door of the pure core: what is known of a dataset -> what to do with it."""

from planners.decision import Decision, DecisionRecord
from planners.document import Document, DocumentError, describe_problems, read_document, write_document
from planners.fingerprint import CaseSize, Fingerprint, IntensityStatistics, LabelClass, Labels
from planners.plan import ChannelNormalization, Configuration, Loss, Network, Plan, Resampling

__all__ = [
    "CaseSize",
    "ChannelNormalization",
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
    "Network",
    "Plan",
    "Resampling",
    "describe_problems",
    "read_document",
    "write_document",
]

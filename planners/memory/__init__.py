"""What a plan needs of memory and disk, as a model of its networks with named coefficients."""

from planners.memory.coefficients import Coefficients, Device, DType, coefficients_for
from planners.memory.estimate import MemoryEstimate, estimate_configuration_memory, estimate_memory
from planners.memory.layers import Layer, count_parameters, network_layers
from planners.memory.storage import estimate_case_memory, estimate_disk, estimate_volume_memory

__all__ = [
    "Coefficients",
    "DType",
    "Device",
    "Layer",
    "MemoryEstimate",
    "coefficients_for",
    "count_parameters",
    "estimate_case_memory",
    "estimate_configuration_memory",
    "estimate_disk",
    "estimate_memory",
    "estimate_volume_memory",
    "network_layers",
]

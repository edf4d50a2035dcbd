"""Running jobs on this machine: executor, device, memory."""

import os

# Read by libgomp, which computes for torch on CPUs, when it is loaded: threads sleep while they wait for each other. By
# default they spin, and beside other programs a step takes ten times as long (decision 0200).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def torchrun_place() -> tuple[int, int, int] | None:
    """Rank, number of processes, and rank on this machine, where ``torchrun`` started this process beside others; else None."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "TORCHELASTIC_RUN_ID" not in os.environ or any(name not in os.environ for name in names):
        return None
    rank, count, local = (int(os.environ[name]) for name in names)
    return (rank, count, local) if count > 1 else None


def visible_gpus() -> str | None:
    """What ``CUDA_VISIBLE_DEVICES`` says of the GPUs that a process sees; None where it is not set, and all are seen."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")

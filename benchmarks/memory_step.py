"""One process, one training: how much memory each of its first steps takes. `benchmarks/memory.py` and `benchmarks/kept_heap.py` start it.

Reads a job as JSON from standard input and writes a result as JSON to standard output. Torch is imported and its memory
taken as the zero before anything else is, so that the product's own imports count as the step's.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch

RESET_PEAK = "5"
"""Written to ``clear_refs``, lets the kernel's high-water mark start again from what is resident now (man 5 proc)."""


def status_bytes(field: str) -> int:
    """A size from the kernel's account of this process: ``VmRSS`` is resident now, ``VmHWM`` was at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def reset_peak(device: str) -> None:
    """Let the peak start again from what is taken now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)


def peak_bytes(device: str) -> int:
    """Most since the last reset: reserved on a GPU, resident on a CPU."""
    return torch.cuda.max_memory_reserved() if device == "cuda" else status_bytes("VmHWM")


def current_bytes(device: str) -> int:
    """Taken now: reserved on a GPU, resident on a CPU."""
    return torch.cuda.memory_reserved() if device == "cuda" else status_bytes("VmRSS")


def measure(job: dict[str, object], zero: int) -> dict[str, object]:
    """Peak bytes of each step above ``zero``, and what stayed after it, of the job's training on random patches."""
    from autoseg.networks.build import build_network
    from autoseg.training.loop import make_parts, train_step
    from autoseg.training.losses import make_loss
    from autoseg.training.preflight import kept_heap_for
    from planners import Configuration, Labels, trial_training

    configuration = Configuration.model_validate_json(str(job["configuration"]))
    labels = Labels.model_validate_json(str(job["labels"]))
    device = str(job["device"])
    imported = status_bytes("VmRSS") - zero
    training = trial_training(
        configuration,
        base_features=configuration.network.features[0],
        batch_size=configuration.batch_size,
        precision=str(job["dtype"]),  # type: ignore[arg-type]  # one of them: the parent's parser checks
    )
    plans_own = {"optimiser": job["optimiser"], "momentum": 0.99, "deep_supervision": configuration.deep_supervision}
    training = training.model_copy(update=plans_own)
    network = build_network(configuration.network, deep_supervision=training.deep_supervision).train()
    parts = make_parts(network, make_loss(configuration.loss, labels), training, torch.device(device))
    batch = (configuration.batch_size, configuration.network.num_inputs, *configuration.patch_shape)
    images = torch.randn(batch)
    values = torch.randint(0, len(labels.values) + 1, (batch[0], *batch[2:]))
    peaks, after, seconds = [], [], []
    zero = 0 if device == "cuda" else zero
    keeping = kept_heap_for(configuration, training, torch.device(device)) if job.get("keeps_freed") else nullcontext()
    with keeping:
        for _ in range(int(str(job["steps"]))):
            reset_peak(device)
            started = time.perf_counter()
            loss, _ = train_step(parts, images, values, 1e-3)
            seconds.append(round(time.perf_counter() - started, 4))
            peaks.append(peak_bytes(device) - zero)
            after.append(current_bytes(device) - zero)
    return {"imported": imported, "peaks": peaks, "after": after, "step_seconds": seconds, "loss": loss}


def main() -> None:
    """Read the job, measure, and write what was found."""
    job = json.load(sys.stdin)
    torch.set_num_threads(int(job["threads"]))
    print(json.dumps(measure(job, status_bytes("VmRSS"))))


if __name__ == "__main__":
    main()

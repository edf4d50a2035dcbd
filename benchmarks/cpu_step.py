"""A training step of the product beside the same network trained in float32 with torch's defaults, on a CPU.

    autoseg preprocess DATASET --out RUN
    python benchmarks/cpu_step.py RUN [--configuration 3d_fullres] [--features 32] [--threads 2]

Both train the configuration's own network and batch, with deep supervision, loss, gradient clipping and optimiser, and take
turns in one process. The product computes in bfloat16 with its own instance norm; torch's defaults are float32 and
`torch.nn.InstanceNorm3d`. The product's step compiled takes turns with them. Freed memory is kept, as in a training. Beside them stand the machine's matrix peaks, what share of the bfloat16 peak the step's
multiplications reach, where its time goes by torch's profiler, and what making a batch costs. The table is kept in
``results/cpu_step.json``, for other widths in ``results/cpu_step_FEATURES.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from autoseg.networks.blocks import InstanceNorm
from autoseg.networks.build import build_network
from autoseg.preprocessing.store import open_case
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document
from autoseg.training.fold_spec import configuration_recipe
from autoseg.training.loop import Parts, make_parts, run_network, train_step
from autoseg.training.losses import make_loss, supervise_deeply
from autoseg.training.preflight import kept_heap_for
from autoseg.training.sampling import BatchSource, finish
from planners import Configuration, Plan, Training, trial_training, with_width

RESULTS = Path(__file__).resolve().parent / "results" / "cpu_step.json"
CPU = torch.device("cpu")
MATRIX = 2048
"""Edge of the square matrices whose product sets the peak."""
GROUPS = {
    "convolutions": ("convolution", "mkldnn_convolution"),
    "normalisation": ("group_norm", "instance_norm", "batch_norm"),
    "copies between types and layouts": ("copy_", "_to_copy", "to_mkldnn", "cat", "contiguous", "clone"),
    "activations": ("leaky_relu",),
    "optimiser": ("sgd", "adam", "clip", "foreach", "norm"),
}
"""Words in the names of torch's operations; the first group that fits takes the time."""


class TorchsNorm(InstanceNorm):
    """torch's own instance norm, and what follows it one by one."""

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None, slope: float = 1.0) -> torch.Tensor:
        result = functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=1e-5)
        result = result if skip is None else result + skip
        return result if slope == 1 else functional.leaky_relu(result, slope, inplace=True)


def torchs_own(network: nn.Module) -> nn.Module:
    """The same network and weights with torch's own instance norm; changes ``network``."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, InstanceNorm):
                replaced = TorchsNorm(child.weight.shape[0])
                replaced.load_state_dict(child.state_dict())
                setattr(module, name, replaced)
    return network


def parts_of(
    plan: Plan, configuration: Configuration, precision: str, *, own_norm: bool, compiled: bool = False
) -> Parts:
    """The configuration's own network and batch under the method's optimiser."""
    network = build_network(configuration.network, deep_supervision=configuration.deep_supervision, seed=0).train()
    if not own_norm:
        network = torchs_own(network)
    training = training_of(configuration, precision).model_copy(update={"compiled": compiled})
    return make_parts(network, make_loss(configuration.loss, plan.labels), training, CPU)


def training_of(configuration: Configuration, precision: str) -> Training:
    """SGD with deep supervision at the plan's width and batch."""
    training = trial_training(
        configuration,
        base_features=configuration.network.features[0],
        batch_size=configuration.batch_size,
        precision=precision,  # type: ignore[arg-type]  # one of the two below
    )
    changes = {"optimiser": "sgd", "momentum": 0.99, "deep_supervision": configuration.deep_supervision}
    return training.model_copy(update=changes)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def mean_seconds(work: Callable[[], object]) -> float:
    """Of three in a row, after one that takes the memory that is then kept."""
    work()
    return seconds(lambda: [work() for _ in range(3)]) / 3


def matrix_peak(dtype: torch.dtype) -> float:
    """Operations per second of the best of some square products."""
    a, b = torch.randn(MATRIX, MATRIX).to(dtype), torch.randn(MATRIX, MATRIX).to(dtype)
    return 2 * MATRIX**3 / min(seconds(lambda: a @ b) for _ in range(15))


def step_operations(parts: Parts, images: torch.Tensor, labels: torch.Tensor) -> int:
    """Multiplications and additions of a forward and a backward pass, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        logits = run_network(parts.network, images, "float32")
        supervise_deeply(parts.loss, logits if isinstance(logits, list) else [logits], labels).backward()
    parts.optimiser.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


def where_time_goes(work: Callable[[], object]) -> dict[str, float]:
    """Share of the time of each group of operations."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(3):
            work()
    times = dict.fromkeys([*GROUPS, "all else"], 0.0)
    for event in profiler.key_averages():
        names = (group for group, words in GROUPS.items() if any(word in event.key.lower() for word in words))
        times[next(names, "all else")] += event.self_cpu_time_total
    total = sum(times.values())
    return {name: round(spent / total, 3) for name, spent in times.items()}


def batches_of(folder: Path, configuration: Configuration, training: Training) -> BatchSource:
    """Training batches of all preprocessed cases."""
    names = sorted(path.name.removesuffix(".case.json") for path in folder.glob("*.case.json"))
    return BatchSource(
        cases=[open_case(folder, name) for name in names],
        recipe=configuration_recipe(configuration, training),
        batch_size=training.batch_size,
        foreground_share=training.foreground_share,
        seed=0,
        configuration=configuration.name,
        fold=0,
        purpose="training",
    )


def measure(plan: Plan, configuration: Configuration, folder: Path, *, threads: int, rounds: int) -> dict[str, object]:
    """Times of all kinds of steps in turns, their medians in seconds, and what they are compared with."""
    training = training_of(configuration, "bfloat16")
    source = batches_of(folder, configuration, training)
    images, labels = finish(source[0], source.recipe, CPU)
    product = parts_of(plan, configuration, "bfloat16", own_norm=True)
    compiled = parts_of(plan, configuration, "bfloat16", own_norm=True, compiled=True)
    plain = parts_of(plan, configuration, "float32", own_norm=False)
    operations = step_operations(plain, images, labels)
    times: dict[str, list[float]] = {"product": [], "compiled": [], "torch": [], "batch": []}
    compile_s = seconds(lambda: train_step(compiled, images, labels, 1e-4))
    for turn in range(rounds + 2):
        with kept_heap_for(configuration, training, CPU):
            found = {
                "product": mean_seconds(lambda: train_step(product, images, labels, 1e-4)),
                "compiled": mean_seconds(lambda: train_step(compiled, images, labels, 1e-4)),
            }
        found["torch"] = seconds(lambda: train_step(plain, images, labels, 1e-4))
        batches = range(10 * turn, 10 * turn + 10)
        found["batch"] = seconds(lambda batches=batches: [finish(source[k], source.recipe, CPU) for k in batches]) / 10
        if turn >= 2:  # the first ones prepare kernels and memory
            for name, value in found.items():
                times[name].append(value)
    peaks = {"bfloat16": matrix_peak(torch.bfloat16), "float32": matrix_peak(torch.float32)}
    middle = {name: median(values) for name, values in times.items()}
    features = configuration.network.features[0]
    return {
        "command": f"python benchmarks/cpu_step.py RUN --configuration {configuration.name} --features {features} "
        f"--threads {threads}",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {threads} threads",
        "torch": torch.__version__,
        "network": f"{plan.dataset_name}, patch {configuration.patch_shape}, batch {configuration.batch_size}, "
        f"{features} features",
        "seconds": {name: round(value, 4) for name, value in middle.items()},
        "rounds": {name: [round(value, 4) for value in values] for name, values in times.items()},
        "product_against_torch": round(middle["torch"] / middle["product"], 3),
        "compiled_against_product": round(middle["product"] / middle["compiled"], 3),
        "first_compiled_step_s": round(compile_s, 1),
        "data_share": round(middle["batch"] / middle["product"], 3),
        "gigaoperations_per_step": round(operations / 1e9, 1),
        "peak_gigaoperations_per_s": {name: round(value / 1e9, 1) for name, value in peaks.items()},
        "share_of_bfloat16_peak": round(operations / middle["product"] / peaks["bfloat16"], 3),
        "time_by_operation": where_time_goes(lambda: train_step(product, images, labels, 1e-4)),
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--features", type=int, help="at full resolution; without, the plan's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = RunFolder(options.run)
    plan = load_document(Plan, run.plan)
    planned = plan.configuration(options.configuration)
    own = planned.network.features[0]
    features = options.features or own
    configuration = planned.model_copy(update={"network": with_width(planned.network, features)})
    folder = run.preprocessed(configuration.data)
    result = measure(plan, configuration, folder, threads=options.threads, rounds=options.rounds)
    text = json.dumps(result, indent=2)
    (RESULTS if features == own else RESULTS.with_stem(f"cpu_step_{features}")).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

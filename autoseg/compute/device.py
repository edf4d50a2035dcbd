"""Which processor computes, in which precision, and why a GPU that is there does not."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from autoseg.compute import visible_gpus
from autoseg.compute.memory import free_memory_bytes
from autoseg.issues import AutosegError, Issue
from autoseg.wording import count_noun, first_line
from planners import Precision

logger = logging.getLogger(__name__)
GB = 1e9
ASKING_S = 20.0
"""For which nvidia-smi may take to answer; a driver that hangs must not stop a run on the CPU."""
LEAST_DRIVER = {"12.6": 525, "13.0": 580}
"""Of NVIDIA's drivers, by the CUDA that torch was built for, newest last (CUDA's release notes)."""
LEAST_CAPABILITY = {"12.6": 5.0, "13.0": 7.5}
"""Of cards: CUDA 12.6 still computes on Maxwell, Pascal and Volta, CUDA 13 on Turing and later."""
TURN_TO = "see the page on installing in the documentation"


def log_issue(issue: Issue) -> None:
    """What becomes of issues that nobody asks for."""
    logger.warning("%s", issue)


def choose_device(name: str, show: Callable[[Issue], None] = log_issue) -> torch.device:
    """The device of that name; ``auto`` takes a CUDA GPU, then Apple's, then the CPU. CUDA's current device is set to it.

    A GPU must compute a small convolution and its gradient. ``auto`` passes by one that does not, or that torch cannot use, and
    ``show`` gets an issue that says why and what to install. Raises `AutosegError` for a device that does not exist, and says which
    do, and for one that does not compute.
    """
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    if torch.cuda.is_available():
        present.insert(0, "cuda")
    if name == "auto":
        return _first_that_computes(present, show)
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    wants_gpu = device is not None and device.type == "cuda" and "cuda" not in present
    if wants_gpu and (unusable := unusable_gpu_issue()) is not None:
        raise AutosegError(unusable.model_copy(update={"where": f"--device {name}", "severity": "error"}))
    if device is None or device.type not in present:
        raise _absent(name, f"this machine has {', '.join(present)}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise _absent(name, f"this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type != "cpu" and (reason := why_not_computing(device)) is not None:
        raise AutosegError(_not_computing(device, reason))
    return use_device(device)


def choose_devices(name: str, show: Callable[[Issue], None] = log_issue) -> tuple[torch.device, ...]:
    """As `choose_device`, of several names with commas; ``auto`` takes all CUDA GPUs.

    Of several, each is tried in a process that ends: this one takes memory on the first at most.
    """
    count = torch.cuda.device_count() if name == "auto" and torch.cuda.is_available() else 0
    names = [f"cuda:{i}" for i in range(count)] if count > 1 else name.split(",")
    if len(names) == 1:
        return (choose_device(names[0], show),)
    tried = dict.fromkeys(each for each in names if each != "cpu")
    answers = _ask_beside(list(tried)) if tried else {}
    issues = [issue for issue in answers.values() if issue is not None]
    if issues and (name != "auto" or len(issues) == len(names)):
        raise AutosegError(*issues)
    for issue in issues:
        show(issue.model_copy(update={"severity": "warning"}))
    chosen = tuple(torch.device(each) for each in names if answers.get(each) is None)
    use_device(chosen[0])
    return chosen


ASK = "import sys; from autoseg.compute.device import why_not; print(*(why_not(each) for each in sys.argv[1:]), sep='\\n')"


def _ask_beside(names: list[str]) -> dict[str, Issue | None]:
    """Why each device cannot be used, by another process; None where it can."""
    answer = subprocess.run([sys.executable, "-c", ASK, *names], capture_output=True, text=True, check=False)
    lines = answer.stdout.splitlines()
    if answer.returncode == 0 and len(lines) == len(names):
        found = (Issue.model_validate_json(line) if line else None for line in lines)
        return dict(zip(names, found, strict=True))
    last = answer.stderr.strip().splitlines()[-1:] or [f"exit code {answer.returncode}"]
    message, fix = f"the process that tested it died: {last[0]}", "use the other devices, or --device cpu"
    code = "device.does_not_compute"
    return {name: Issue(code=code, where=f"--devices {name}", message=message, fix=fix) for name in names}


def why_not(name: str) -> str:
    """Why there is no device of that name that computes, an `Issue` as JSON; empty if there is one."""
    try:
        choose_device(name)
    except AutosegError as error:
        return error.issues[0].model_dump_json()
    return ""


def _first_that_computes(present: list[str], show: Callable[[Issue], None]) -> torch.device:
    if "cuda" not in present and (unusable := unusable_gpu_issue()) is not None:
        show(unusable)
    for each in present[:-1]:
        device = torch.device(each)
        if (reason := why_not_computing(device)) is None:
            return use_device(device)
        show(_not_computing(device, reason).model_copy(update={"severity": "warning"}))
    return torch.device("cpu")


def use_device(device: torch.device) -> torch.device:
    """Make ``device`` the one that CUDA takes where none is named: memory for transfers is pinned for that one."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _absent(name: str, present: str) -> AutosegError:
    message = f"device {name!r} does not exist; {present}"
    return AutosegError(Issue(code="device.unknown", where="--device", message=message))


# --- what is wrong with a GPU ---


def why_not_computing(device: torch.device) -> str | None:
    """Why a small 3D convolution and its gradient fail on a device, in its fastest precision; None if they work."""
    try:
        x = torch.linspace(0, 1, 1024, device=device).reshape(1, 2, 8, 8, 8).requires_grad_()
        weight = torch.ones(4, 2, 3, 3, 3, device=device, requires_grad=True)
        precision = fast_precision(device)
        with torch.autocast(device.type, dtype=getattr(torch, precision), enabled=precision != "float32"):
            result = functional.conv3d(x, weight, padding=1)
        result.float().square().mean().backward()  # type: ignore[no-untyped-call]
        is_sound = all(each is not None and bool(each.isfinite().all()) for each in (x.grad, weight.grad))
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return None if is_sound else "the gradient of a small convolution is not finite"


def _not_computing(device: torch.device, reason: str) -> Issue:
    name, fix = str(device), "update the driver, or use --device cpu"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        gpu = Gpu(torch.cuda.get_device_name(device), driver_version(), float(f"{major}.{minor}"))
        name, fix = f"{gpu.name} (compute capability {gpu.capability})", how_to_install(gpu)
    message = f"{name} does not compute a small convolution with torch {torch.__version__}: {reason}"
    return Issue(code="device.does_not_compute", where="--device", message=message, fix=fix)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One of NVIDIA's, as its driver tells."""

    name: str = "an NVIDIA GPU"
    driver: str = ""
    """Version; empty: unknown."""
    capability: float | None = None


def driver_version(root: Path = Path("/")) -> str:
    """Version of NVIDIA's driver, of the kernel or else by nvidia-smi; empty where there is none."""
    found = find_gpu(root)
    return "" if found is None else found.driver


def find_gpu(root: Path = Path("/")) -> Gpu | None:
    """The first NVIDIA GPU that its driver knows, whether torch can use it or not; ``root`` holds ``proc``."""
    asked = _ask_driver()
    if asked is not None:
        return asked
    try:
        words = (root / "proc/driver/nvidia/version").read_text().splitlines()[0].split()
    except (OSError, IndexError):
        return None
    return Gpu(driver=next((word for word in words if word[:1].isdigit() and "." in word), ""))


def _ask_driver() -> Gpu | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=ASKING_S, check=True).stdout
        name, driver, capability = (each.strip() for each in answer.splitlines()[0].rsplit(",", 2))
        return Gpu(name, driver, float(capability))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):  # no GPU, or a driver that does not answer
        return None


def unusable_gpu_issue(root: Path = Path("/")) -> Issue | None:
    """Says of an NVIDIA driver that torch cannot use why, and what to install; None where there is no driver."""
    gpu = find_gpu(root)
    if gpu is None:
        return None
    if (visible := visible_gpus()) is not None:
        message = f"no GPU is used: {gpu.name} is hidden, as CUDA_VISIBLE_DEVICES is {visible!r}"
        fix = "unset CUDA_VISIBLE_DEVICES to use it"
        return Issue(code="device.hidden", severity="note", where="--device", message=message, fix=fix)
    driver = f" with driver {gpu.driver}" if gpu.driver else ""
    message, fix = (
        f"{gpu.name}{driver} is not used: torch {torch.__version__} {_why_unavailable()}",
        how_to_install(gpu),
    )
    if not list((root / "dev").glob("nvidia[0-9]*")) and (root / "proc/driver/nvidia").is_dir():
        message, fix = f"an NVIDIA driver{driver[5:]} is loaded, but no GPU is in reach", "give the container its GPUs"
        fix += " (docker run --gpus all, apptainer exec --nv), or ask the cluster for one"
    return Issue(code="device.unusable", severity="warning", where="--device", message=message, fix=fix)


def _why_unavailable() -> str:
    if torch.version.cuda is None:
        return "is built for CPUs only"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return f"(CUDA {torch.version.cuda}) says: {first_line(error)}"
    return f"(CUDA {torch.version.cuda}) finds no GPU"


def how_to_install(gpu: Gpu) -> str:
    """Which torch computes on a GPU with its driver."""
    number = gpu.driver.partition(".")[0]
    driver = int(number) if number.isdigit() else None
    card = LEAST_CAPABILITY["13.0"] if gpu.capability is None else gpu.capability
    if card < min(LEAST_CAPABILITY.values()):
        return f"no torch computes on it any more; use --device cpu or another GPU, {TURN_TO}"
    fitting = [each for each, least in LEAST_CAPABILITY.items() if card >= least]
    if driver is not None and driver < LEAST_DRIVER[fitting[0]]:
        newest = LEAST_DRIVER[fitting[-1]]
        return f"update the driver to {newest} or later and install torch for CUDA {fitting[-1]}; {TURN_TO}"
    usable = [each for each in fitting if driver is None or driver >= LEAST_DRIVER[each]]
    cuda = usable[-1]
    index = f"https://download.pytorch.org/whl/cu{cuda.replace('.', '')}"
    return f"install torch for CUDA {cuda} (pip install --force-reinstall torch --index-url {index}); {TURN_TO}"


# --- precision ---


def fast_precision(device: torch.device) -> Precision:
    """The fastest precision of a device: bfloat16 where it has units for it, else float16 on GPUs.

    CPUs without bfloat16 instructions stay with float32: they would only emulate it.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch asks the current one
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bfloat16"
    return "float32"


def usable_precision(precision: Precision, device: torch.device) -> Precision:
    """The precision that a model was trained in, or float32 where ``device`` would only emulate it."""
    halved_on_gpu = device.type == "cuda" and precision == "float16"
    return precision if halved_on_gpu or precision == fast_precision(device) else "float32"


# --- words ---


def describe_device(device: torch.device, *, num_threads: int) -> str:
    """``CPU, 2 threads`` or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type.upper()}, {count_noun(num_threads, 'thread')}"


def introduce_device(device: torch.device, *, num_threads: int) -> str:
    """`describe_device` with memory, driver, the fastest precision and torch: the first line of a run."""
    parts = [describe_device(device, num_threads=num_threads), f"{free_memory_bytes() / GB:.0f} GB free"]
    torch_version = f"torch {torch.__version__}"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        parts[1] = f"{free / GB:.0f} of {total / GB:.0f} GB free"
        parts += [f"driver {version}"] if (version := driver_version()) else []
        torch_version += f" for CUDA {torch.version.cuda}" if torch.version.cuda else ""
    return ", ".join([*parts, fast_precision(device), torch_version])


def set_threads(num_threads: int) -> None:
    """Set torch's number of threads; results on a CPU depend on it."""
    torch.set_num_threads(num_threads)

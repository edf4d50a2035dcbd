"""Training steps with threads that spin or sleep while they wait for each other, alone and beside other programs.

    python benchmarks/waiting_threads.py [--rounds 5] [--hogs 4]

Each measurement is a process of its own, as the policy is read once; both policies take turns. Median seconds of a step of a small
3D network in bfloat16, alone and beside so many programs that do nothing but count (decision 0200).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from statistics import median

STEPS = """
import time, torch
from torch import nn
layers = [nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1), nn.Conv3d(8, 16, 3, 2, 1), nn.Conv3d(16, 16, 3, padding=1)]
network = nn.Sequential(*(part for conv in layers for part in (conv, nn.InstanceNorm3d(conv.out_channels), nn.LeakyReLU())))
images, seconds = torch.randn(2, 1, 48, 48, 48), []
for step in range(12):
    started = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = network(images).float().square().mean()
    loss.backward()
    seconds.append(time.perf_counter() - started)
print(sorted(seconds[3:])[4])
"""


def step_s(**policy: str) -> float:
    """Median seconds of a step in a new process; without a policy, as torch comes."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    call = [sys.executable, "-c", STEPS]
    done = subprocess.run(call, env={**environment, **policy}, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hogs", type=int, default=4)
    arguments = parser.parse_args()
    for number in (0, arguments.hogs):
        hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
        try:
            rounds = [(step_s(), step_s(OMP_WAIT_POLICY="passive")) for _ in range(arguments.rounds)]
        finally:
            for hog in hogs:
                hog.kill()
        spinning, sleeping = map(median, zip(*rounds, strict=True))
        print(
            f"beside {number} programs: {spinning:.3f} s spinning, {sleeping:.3f} s sleeping, ratio {spinning / sleeping:.1f}"
        )


if __name__ == "__main__":
    main()

"""Builds and rehearses containers with a real Docker daemon and without one, good ones and faulty ones, and writes what was said.

    python benchmarks/containers.py --base ROOTFS.tar --work FOLDER [--out benchmarks/results/containers.md]

ROOTFS.tar is a root file system with Python of the running version, e.g. of
``debootstrap --variant=minbase --include=python3,libgomp1 bookworm base``. Needs root, and dockerd, containerd and runc on
the path; the daemon gets a data root of its own in FOLDER, no bridge, and ends with this program. About 6 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from builders import CPU, crop_images, make_phantom, write_short_schedule
from docker_daemon import own_daemon
from faulty_container import FAULTS, make_faulty

from autoseg import api
from autoseg.delivery.container.context import read_program
from autoseg.delivery.container.image import write_image
from autoseg.tracking.progress import SilentReporter

ISLES26, PROMISE12 = "isles26", "promise12.json"
SOCKETS = {
    "algorithm_interfaces": [
        {
            "inputs": [
                {
                    "slug": "transverse-t2-prostate-mri",
                    "relative_path": "images/transverse-t2-prostate-mri",
                    "kind": "Image",
                }
            ],
            "outputs": [
                {
                    "slug": "prostate-segmentation",
                    "relative_path": "images/prostate-segmentation",
                    "kind": "Segmentation",
                }
            ],
        }
    ]
}
"""As grand-challenge describes the interfaces of a phase."""


def make_run(work: Path) -> tuple[Path, Path]:
    """A dataset of small phantoms of one class, and a finished run of it."""
    dataset = make_phantom(work, test=2, seed=3)
    crop_images(dataset, 32)
    schedule = write_short_schedule(dataset, work)
    api.run(dataset, work / "run", schedule=schedule, **CPU)
    return dataset, work / "run"


class Record:
    """What was said, as Markdown."""

    def __init__(self, out: Path) -> None:
        self.out, self.parts = out, []

    def add(self, title: str, lines: list[str]) -> None:
        self.parts.append(f"### {title}\n\n```\n" + "\n".join(lines) + "\n```\n")
        print(self.parts[-1], flush=True)
        self.out.write_text("\n".join(self.parts))


def rehearse(record: Record, title: str, container: Path | str, cases: Path, **limits: str | Path) -> None:
    started = time.monotonic()
    _, lines = api.rehearse(container, cases, **limits)
    shown = [line.replace(str(cases.parent), "…") for line in lines]
    record.add(title, [*shown, f"(rehearsed in {time.monotonic() - started:.0f} s)"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/containers.md"))
    given = parser.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True)
    (work / PROMISE12).write_text(json.dumps(SOCKETS))
    dataset, run = make_run(work)
    record = Record(given.out)
    contexts = build(work, run)
    images = write_images(work, contexts, given.base, record)
    cases = dataset / "imagesTs"
    with own_daemon(work / "docker") as version:
        record.add("Docker", [version])
        by_docker(record, contexts, images, dataset, cases)
        faulty_by_docker(record, work, contexts["isles26"], cases)
    for name, image in images.items():
        model = contexts[name] / "model.tar.gz"
        rehearse(record, f"{name}, image file, without Docker", image, cases, model=model, time="10m")
    for method in ("exec", "invoke"):
        rehearse(record, f"isles26 folder, {method}, without Docker", contexts["isles26"], dataset, method=method)
    shutil.rmtree(work)


def build(work: Path, run: Path) -> dict[str, Path]:
    """Build contexts like those of ISLES'26 and PROMISE12. The phantom has two classes, which ISLES'26 maps to one."""
    table = (
        Path("datasets_spec/containers/isles26.toml")
        .read_text()
        .replace("values = [1] }", "values = [1], remap = { 2 = 1 } }")
    )
    (work / "isles26.toml").write_text(table)
    made = {"isles26": work / "isles26", "promise12": work / "promise12"}
    api.container(run, made["isles26"], interface=str(work / "isles26.toml"), empty_if_failing=True, tag="isles26")
    api.container(run, made["promise12"], interface=str(work / PROMISE12), tag="promise12")
    return made


def write_images(work: Path, contexts: dict[str, Path], base: Path, record: Record) -> dict[str, Path]:
    images, lines = {}, []
    for name, method in (("isles26", "invoke"), ("promise12", "exec")):
        started, image = time.monotonic(), work / f"{name}.tar"
        number = write_image(
            contexts[name],
            read_program(contexts[name]),
            base,
            image,
            method=method,
            tag=name,
            reporter=SilentReporter(),
        )
        images[name] = image
        lines.append(f"{name}: {image.stat().st_size / 1e9:.2f} GB in {time.monotonic() - started:.0f} s, id {number}")
    record.add("Images written without Docker", lines)
    return images


def by_docker(record: Record, contexts: dict[str, Path], images: dict[str, Path], dataset: Path, cases: Path) -> None:
    for name, image in images.items():
        model = contexts[name] / "model.tar.gz"
        rehearse(record, f"{name}, image file, by Docker", image, dataset if name == "isles26" else cases, model=model)
        told = subprocess.run(
            ["docker", "image", "inspect", "--format", "{{.Id}} {{.Config.User}} {{.Architecture}} {{json .Config.Labels}}", name],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        record.add(f"{name}, as Docker knows it", [told.stdout.strip()])


def faulty_by_docker(record: Record, work: Path, context: Path, cases: Path) -> None:
    """Containers that do one thing wrong, built by Docker on the image that was loaded."""
    for fault in FAULTS:
        for method in ("exec", "invoke"):
            folder = work / f"{fault}_{method}"
            make_faulty(context, folder, fault)
            lines = [
                "FROM isles26",
                "COPY app/ /opt/app/",
                f'LABEL org.grand-challenge.api-method="{method}"',
                f'CMD ["{method}"]',
            ]
            (folder / "Dockerfile").write_text("\n".join(lines) + "\n")
            env = os.environ | {"DOCKER_BUILDKIT": "0"}
            subprocess.run(
                ["docker", "build", "--quiet", "--tag", f"{fault}-{method}", folder],
                check=True,
                env=env,
                stdout=subprocess.DEVNULL,
            )
            limits = {"memory": "300m", "time": "5s"}
            rehearse(
                record,
                f"{fault}, {method}, by Docker",
                f"{fault}-{method}",
                cases,
                model=context / "model.tar.gz",
                **limits,
            )


if __name__ == "__main__":
    main()

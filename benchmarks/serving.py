"""A real service on loopback under load: is an answer lost, does its memory grow, does a kill lose what was finished?

    python benchmarks/serving.py MODEL IMAGES                              # 200 requests of 8 clients
    python benchmarks/serving.py MODEL IMAGES --requests 60 --kill-at 30   # kill -9 after 30 answers, and start again

Each client sends an image, comes again where the queue is full, waits for its job, and fetches the mask, which must be, byte for byte, the one
of the first request with that image. All answers that were ever finished are fetched again at the end. Memory is the resident memory of
the service, read after every answer.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

PATIENCE_S = 600.0
LONGEST_PAUSE_S = 1.0
"""Between two attempts, whatever Retry-After says: the load shall stay."""


class Service:
    """The process, started again on the same port and state folder when it was killed."""

    def __init__(self, words: Sequence[str], state: Path, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        call = [sys.executable, "-m", "autoseg", "serve", *words, "--port", str(port), "--state", str(state)]
        self.call, self.processes = call, list[subprocess.Popen[bytes]]()
        self.start()

    def start(self) -> None:
        self.processes.append(subprocess.Popen(self.call, stderr=subprocess.DEVNULL))
        with httpx.Client(base_url=self.address) as client:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                try:
                    client.get("/health")
                    return
                except httpx.TransportError:
                    if self.processes[-1].poll() is not None or time.monotonic() > deadline:
                        raise SystemExit("the service does not start") from None
                    time.sleep(0.1)

    def resident_mb(self) -> float:
        """Of the service now."""
        lines = Path(f"/proc/{self.processes[-1].pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

    def end(self) -> None:
        self.processes[-1].kill()
        self.processes[-1].wait()


class Load:
    """What all clients share."""

    def __init__(self, service: Service, images: Sequence[Path], number: int, kill_at: int | None) -> None:
        self.service, self.images, self.kill_at = service, images, kill_at
        self.left = list(range(number))
        self.lock = threading.Lock()
        self.expected: dict[Path, bytes] = {}
        self.done: list[tuple[str, Path]] = []
        self.memory_mb: list[float] = []
        self.seconds: list[float] = []
        self.full = self.broken = self.wrong = 0

    def client(self) -> None:
        with httpx.Client(base_url=self.service.address, timeout=PATIENCE_S) as client:
            while True:
                with self.lock:
                    if not self.left:
                        return
                    image = self.images[self.left.pop() % len(self.images)]
                started = time.monotonic()
                location = self.send(client, image)
                mask = self.fetch(client, location)
                self.note(location, image, mask, time.monotonic() - started)

    def send(self, client: httpx.Client, image: Path) -> str:
        while True:
            try:
                answer = client.post("/jobs", content=image.read_bytes())
            except httpx.TransportError:  # killed: the upload is gone, and nobody promised anything
                self.broken += 1
                time.sleep(LONGEST_PAUSE_S)
                continue
            if answer.status_code == 202:
                return answer.headers["location"]
            assert answer.status_code == 503, answer.text
            self.full += 1
            time.sleep(min(LONGEST_PAUSE_S, float(answer.headers["retry-after"])))

    def fetch(self, client: httpx.Client, location: str) -> bytes:
        while True:
            try:
                status = client.get(location, params={"wait": 60}).json()
                assert status["state"] != "failed", status
                if status["state"] == "done":
                    return client.get(f"{location}/nifti").content
            except httpx.TransportError:
                self.broken += 1
                time.sleep(LONGEST_PAUSE_S)

    def note(self, location: str, image: Path, mask: bytes, seconds: float) -> None:
        with self.lock:
            self.wrong += mask != self.expected.setdefault(image, mask)
            self.done.append((location, image))
            self.seconds.append(seconds)
            if len(self.done) == self.kill_at:
                self.service.end()
                self.service.start()
            self.memory_mb.append(self.service.resident_mb())

    def lost(self) -> int:
        """Answers that were finished once, and are not there, or not the same, now."""
        with httpx.Client(base_url=self.service.address, timeout=PATIENCE_S) as client:
            return sum(client.get(f"{location}/nifti").content != self.expected[image] for location, image in self.done)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, help="folder of NIfTI images")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--queue", type=int, default=4)
    parser.add_argument("--kill-at", type=int, help="kill -9 after so many answers")
    parser.add_argument("--serve", default="--device cpu --threads 1", help="other options of autoseg serve")
    given = parser.parse_args()
    images = sorted(given.images.glob("*.nii.gz"))
    with tempfile.TemporaryDirectory() as folder:
        words = [str(given.model), "--queue", str(given.queue), *given.serve.split()]
        service = Service(words, Path(folder, "state"), free_port())
        try:
            idle, started = service.resident_mb(), time.monotonic()
            load = Load(service, images, given.requests, given.kill_at)
            threads = [threading.Thread(target=load.client) for _ in range(given.clients)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.monotonic() - started
            lost = load.lost()
        finally:
            service.end()
    quarters = [round(load.memory_mb[len(load.memory_mb) * k // 4 - 1]) for k in (1, 2, 3, 4)]
    print(
        f"{len(load.done)} answers of {given.requests} requests by {given.clients} clients in {took:.0f} s: {lost} lost, {load.wrong} different; "
        f"the queue of {given.queue} was full {load.full} times, the line broke {load.broken} times"
    )
    print(
        f"memory: {idle:.0f} MB before, {' '.join(map(str, quarters))} MB after each quarter, {max(load.memory_mb):.0f} MB at most; "
        f"a request took {statistics.median(load.seconds):.1f} s (median), {max(load.seconds):.1f} s at most"
    )
    if lost or load.wrong or len(load.done) < given.requests:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""Processes that train one model together. Rank 0 leads, and the others do what it says. The one door to torch.distributed."""

from __future__ import annotations

import io
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from autoseg.compute.memory import is_out_of_memory
from autoseg.issues import AutosegError, Issue
from autoseg.wording import first_line

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

PATIENCE = timedelta(days=7)
"""Time for which the others wait while rank 0 alone prepares, validates or predicts."""
LOST = "ddp.process_lost"
LOOK_S, GRACE_S = 0.2, 15.0
"""Seconds between two looks at the other processes, and those that rank 0 has to notice by itself that one has gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The place of this process among those that train one model."""

    rank: int
    """Number of this process, from 0 on."""
    count: int

    def sizes(self, batch_size: int) -> list[int]:
        """Samples of a batch that each process computes: as even as possible, the first ones more."""
        return [batch_size // self.count + (rank < batch_size % self.count) for rank in range(self.count)]

    def share(self, batch_size: int) -> range:
        """The samples of a batch that this process computes."""
        sizes = self.sizes(batch_size)
        start = sum(sizes[: self.rank])
        return range(start, start + sizes[self.rank])

    def gather(self, own: Tensor, batch_size: int) -> Tensor:
        """The rows of all processes, (batch, ...), from this one's (share, ...), which stay differentiable; others are constants."""
        sizes = self.sizes(batch_size)
        sent = own.detach()
        if len(own) < sizes[0]:  # all processes send as much
            sent = torch.cat([sent, sent.new_zeros((sizes[0] - len(own), *own.shape[1:]))])
        found = [torch.empty_like(sent) for _ in sizes]
        with self._linked():
            dist.all_gather(found, sent.contiguous())
        rows = [part[:size] for part, size in zip(found, sizes, strict=True)]
        rows[self.rank] = own
        return torch.cat(rows)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Add up the gradients of all processes, in place: the same bits everywhere."""
        gradients = [each.grad for each in parameters if each.grad is not None]
        flat = torch.cat([each.flatten() for each in gradients])
        with self._linked():
            dist.all_reduce(flat)
        for gradient, whole in zip(gradients, torch.split(flat, [each.numel() for each in gradients]), strict=True):
            gradient.copy_(whole.view_as(gradient))

    def agree(self, value: float) -> float:
        """The value that rank 0 gives."""
        told = torch.tensor([value], dtype=torch.float64)
        with self._linked():
            dist.broadcast(told, 0)
        return float(told.item())

    def tell(self, content: Any) -> None:
        """Send plain values and tensors from rank 0 to all others, which `hear` them."""
        packed = io.BytesIO()
        torch.save(content, packed)
        with self._linked():
            dist.broadcast_object_list([packed.getvalue()], 0, device=torch.device("cpu"))

    def hear(self) -> Any:
        """What rank 0 tells, in main memory."""
        told: list[Any] = [None]
        with self._linked():
            dist.broadcast_object_list(told, 0, device=torch.device("cpu"))
        return torch.load(io.BytesIO(told[0]), map_location="cpu", weights_only=True)

    @contextmanager
    def _linked(self) -> Iterator[None]:
        """Turns a broken connection into an `AutosegError`."""
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise AutosegError(lost_issue(f"process {self.rank} of {self.count}", first_line(error))) from error


def lost_issue(where: str, found: str) -> Issue:
    """Says that a process which trained the same model has gone."""
    message = f"another process that trains the same model has ended ({found})"
    return Issue(code=LOST, where=where, message=message, fix="run the same command to resume")


def joined(device: torch.device, *, rank: int, count: int, store: Store | None = None) -> Ranks:
    """Join the others, at ``store`` or where torchrun says, unless that is done. Waits for all of them."""
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    return Ranks(rank=rank, count=count)


def leave() -> None:
    """End the connection, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def store_at(port: int, count: int) -> TCPStore:
    """Where the processes of this machine find each other; rank 0 opens it with port 0."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # here: a torch without it still trains

    return TCPStore("127.0.0.1", port, count, is_master=not port, wait_for_workers=False, timeout=PATIENCE)


@dataclass(slots=True, kw_only=True)
class Others:
    """The processes that this one has started, and what became of them."""

    processes: Sequence[subprocess.Popen[bytes]]
    log: Path
    over: threading.Event = field(default_factory=threading.Event)

    def lost(self) -> Issue | None:
        """Says which one has ended, and why, if it is known."""
        for rank, process in enumerate(self.processes, start=1):
            code = process.poll()
            if code not in (None, 0):
                ending = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                issue = lost_issue(f"process {rank} of {len(self.processes) + 1}", ending)
                message = f"{ending} while it trained the same model as this one; its log is {self.log}"
                return issue.model_copy(update={"message": message})
        return None

    def watch(self, say: Callable[[str], None]) -> None:
        """Until all is over; ends this process where it waits for one that has gone, and does not notice."""
        while not self.over.wait(LOOK_S):
            if (issue := self.lost()) is not None and not self.over.wait(GRACE_S):
                say(f"Error: {issue}")
                os._exit(1)

    def end(self) -> None:
        """Let them end: those that still wait do so when their pipe does."""
        self.over.set()
        for process in self.processes:
            if process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            process.kill()
            process.wait()


@contextmanager
def leading(
    devices: Sequence[str], call: Callable[[int, str, int, int], list[str]], *, log: Path, say: Callable[[str], None]
) -> Iterator[Ranks]:
    """Rank 0 of as many processes as ``devices``, of which the first is its own; ``call`` gives the command of each other one,
    from its rank, its device, the port of `store_at` and the number of processes.

    Raises `AutosegError` that tells which process has gone, if one does.
    """
    store = store_at(0, len(devices))
    with log.open("ab") as file:
        processes = [
            subprocess.Popen(
                call(rank, device, store.port, len(devices)),
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
            for rank, device in enumerate(devices[1:], start=1)
        ]
    others = Others(processes=processes, log=log)
    threading.Thread(target=others.watch, args=(say,), daemon=True).start()
    try:
        yield joined(torch.device(devices[0]), rank=0, count=len(devices), store=store)
    except AutosegError as error:
        if LOST not in error.codes:
            raise
        time.sleep(LOOK_S)  # its end may be seen a little later than that of its connection
        raise AutosegError(others.lost() or error.issues[0]) from error
    finally:
        leave()
        others.end()

"""Starting and stopping the service: models loaded on each device, the state folder locked, the port bound."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import uvicorn

from autoseg.compute.device import choose_devices, set_threads
from autoseg.compute.executor import available_cores
from autoseg.inference.model import load_model
from autoseg.inference.predictor import Predictor
from autoseg.issues import AutosegError, Issue
from autoseg.serving.app import Service, make_app
from autoseg.serving.documents import ModelInfo
from autoseg.serving.guard import is_loopback
from autoseg.serving.jobs import Jobs
from autoseg.serving.rules import Limits
from autoseg.serving.work import Served, describe, work
from autoseg.storage.locks import hold_lock
from autoseg.tracking.progress import Reporter
from autoseg.wording import as_line, count_noun

logger = logging.getLogger(__name__)
GRACE_S = 5
"""For answers that are under way when the service stops."""
BACKLOG = 128
SHORTEST_TOKEN = 16
LOCK = "lock"


def serve(
    models: Sequence[Path],
    *,
    host: str,
    port: int,
    device: str,
    threads: int | None,
    mirroring: bool,
    memory_bytes: int | None,
    state: Path,
    limits: Limits,
    token_file: Path | None,
    reporter: Reporter,
) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises `AutosegError` for models, port, state folder or token that cannot be used."""
    token = None if token_file is None else read_token(token_file)
    infos = {info.name: (path, info) for path, info in named(models)}
    with bound(host, port) as listening, hold_lock(state / LOCK, what=f"the state folder {state}"):
        with reporter.phase("Loading the models"):
            set_threads(threads or available_cores())
            devices = choose_devices(device, lambda issue: reporter.say(as_line(issue)))
            of_devices = [
                {
                    name: Served(
                        info=info,
                        predictor=Predictor(
                            model=load_model(path, device=each), mirroring=mirroring, memory_bytes=memory_bytes
                        ),
                    )
                    for name, (path, info) in infos.items()
                }
                for each in devices
            ]
        jobs = Jobs(state, limits, devices=len(devices))
        service = Service(
            jobs=jobs,
            models=of_devices[0],
            devices=tuple(map(str, devices)),
            token=token,
            is_local=is_loopback(host),
        )
        _say_what_is_served(service, host, listening, reporter)
        _run(service, of_devices, listening, reporter)


def _run(
    service: Service, of_devices: Sequence[Mapping[str, Served]], listening: socket.socket, reporter: Reporter
) -> None:
    workers = [
        Thread(target=work, args=(service.jobs, models, reporter), name=f"device {i}")
        for i, models in enumerate(of_devices)
    ]
    config = uvicorn.Config(
        make_app(service),
        http="h11",
        ws="none",
        log_config=None,
        access_log=False,  # addresses of jobs are secrets
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    server = uvicorn.Server(config)
    for worker in workers:
        worker.start()
    try:
        with suppress(KeyboardInterrupt):  # uvicorn has stopped by then, and raises the signal again
            server.run(sockets=[listening])
    finally:
        service.jobs.stop()
        for worker in workers:
            worker.join()
        reporter.say("Stopped; jobs that wait go on when the service is started again")


def _say_what_is_served(service: Service, host: str, listening: socket.socket, reporter: Reporter) -> None:
    if not service.is_local and service.token is None:
        message = "anyone who reaches this address can use the service, without a password and in clear text"
        fix = "pass --token-file, and put a proxy with TLS before it"
        issue = Issue(
            code="serve.no_authentication", severity="warning", where=f"--host {host}", message=message, fix=fix
        )
        reporter.warn(str(issue))
    name, port = listening.getsockname()[:2]
    shown = f"[{name}]" if ":" in name else name
    reporter.say(f"Serving {', '.join(service.models)} on {', '.join(service.devices)}: http://{shown}:{port}/")
    _, waiting, _ = service.jobs.counts()
    if waiting:
        reporter.say(f"Going on with {count_noun(waiting, 'job')} that an earlier call left")


def named(models: Sequence[Path]) -> Iterator[tuple[Path, ModelInfo]]:
    """The models with names of their own: those of their datasets, with a number where one comes again.

    Raises `AutosegError` for what is no model.
    """
    taken: dict[str, int] = {}
    for path in models:
        info = describe(path)
        number = taken[info.name] = taken.get(info.name, 0) + 1
        yield path, info if number == 1 else info.model_copy(update={"name": f"{info.name}-{number}"})


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens at an address. Raises `AutosegError` where it is in use, or none of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _no_address(host, port, error) from error
    with listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen(BACKLOG)
        except OSError as error:
            raise _no_address(host, port, error) from error
        yield listening


def _no_address(host: str, port: int, error: OSError) -> AutosegError:
    message, fix = f"cannot be used ({error.strerror or error})", "choose another --port or --host"
    return AutosegError(Issue(code="serve.no_address", where=f"{host} port {port}", message=message, fix=fix))


def read_token(path: Path) -> str:
    """The token in a file. Raises `AutosegError` where it cannot be read, and for one that could be guessed."""
    fix = f"write a random text of at least {SHORTEST_TOKEN} characters into it, e.g. by openssl rand -hex 32"
    try:
        token = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        message = f"could not be read ({getattr(error, 'strerror', None) or 'not plain ASCII'})"
        raise AutosegError(Issue(code="serve.token_file", where=str(path), message=message, fix=fix)) from error
    if len(token) < SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise AutosegError(Issue(code="serve.token_file", where=str(path), message="no token", fix=fix))
    return token

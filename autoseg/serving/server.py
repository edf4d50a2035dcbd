"""Starting and stopping the service: models loaded on each device, the state folder locked, the port bound."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

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

GRACE_S = 5
"""For answers that are under way when the service stops."""
BACKLOG = 128
SHORTEST_TOKEN = 16
LOCK = "lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """How models are served."""

    models: tuple[Path, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free one."""
    device: str = "auto"
    threads: int | None = None
    mirroring: bool = True
    memory_bytes: int | None = None
    state: Path
    limits: Limits
    token_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A service whose port is bound, whose models are loaded, and whose jobs are done."""

    service: Service
    listening: socket.socket
    server: uvicorn.Server

    @property
    def address(self) -> str:
        """Where it answers, once `run` was called."""
        name, port = self.listening.getsockname()[:2]
        return f"http://{f'[{name}]' if ':' in name else name}:{port}/"

    def run(self) -> None:
        """Answer requests until a signal ends it, or `uvicorn.Server.should_exit` is set."""
        self.server.run(sockets=[self.listening])


def serve(settings: ServiceSettings, reporter: Reporter) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises `AutosegError` for models, port, state folder or token that cannot be used."""
    with open_service(settings, reporter) as running:
        _say_what_is_served(running, settings.host, reporter)
        with suppress(KeyboardInterrupt):  # uvicorn has stopped by then, and raises the signal again
            running.run()
    reporter.say("Stopped; jobs that wait go on when the service is started again")


@contextmanager
def open_service(settings: ServiceSettings, reporter: Reporter) -> Iterator[Running]:
    """Bind the port, lock the state folder, load the models and do jobs until the block ends; see `serve`."""
    token = None if settings.token_file is None else read_token(settings.token_file)
    infos = {info.name: (path, info) for path, info in named(settings.models)}
    what = f"the state folder {settings.state}"
    with bound(settings.host, settings.port) as listening, hold_lock(settings.state / LOCK, what=what):
        of_devices = _load(settings, infos, reporter)
        jobs = Jobs(settings.state, settings.limits, devices=len(of_devices))
        service = Service(
            jobs=jobs,
            models=next(iter(of_devices.values())),
            devices=tuple(of_devices),
            token=token,
            is_local=is_loopback(settings.host),
        )
        workers = [Thread(target=work, args=(jobs, models, reporter), name=name) for name, models in of_devices.items()]
        for worker in workers:
            worker.start()
        try:
            yield Running(service=service, listening=listening, server=make_server(service))
        finally:
            jobs.stop()
            for worker in workers:
                worker.join()


def _load(
    settings: ServiceSettings, infos: Mapping[str, tuple[Path, ModelInfo]], reporter: Reporter
) -> dict[str, dict[str, Served]]:
    """All models, by name, on each device."""
    how: dict[str, Any] = {"mirroring": settings.mirroring, "memory_bytes": settings.memory_bytes}
    with reporter.phase("Loading the models"):
        set_threads(settings.threads or available_cores())
        devices = choose_devices(settings.device, lambda issue: reporter.say(as_line(issue)))
        return {
            str(device): {
                name: Served(info=info, predictor=Predictor(model=load_model(path, device=device), **how))
                for name, (path, info) in infos.items()
            }
            for device in devices
        }


def make_server(service: Service) -> uvicorn.Server:
    """A server of what a service answers, not started."""
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
    return uvicorn.Server(config)


def _say_what_is_served(running: Running, host: str, reporter: Reporter) -> None:
    service = running.service
    if not service.is_local and service.token is None:
        message = "anyone who reaches this address can use the service, without a password and in clear text"
        fix = "pass --token-file, and put a proxy with TLS before it"
        where = f"--host {host}"
        issue = Issue(code="serve.no_authentication", severity="warning", where=where, message=message, fix=fix)
        reporter.warn(str(issue))
    reporter.say(f"Serving {', '.join(service.models)} on {', '.join(service.devices)}: {running.address}")
    _, waiting, running_now = service.jobs.counts()
    if waiting + running_now:
        reporter.say(f"Going on with {count_noun(waiting + running_now, 'job')} that an earlier call left")


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

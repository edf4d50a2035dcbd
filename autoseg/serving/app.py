"""What the service answers to which request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import autoseg
from autoseg import viewer
from autoseg.issues import AutosegError, Issue
from autoseg.serving.documents import (
    FILE_NAMES,
    ID_PATTERN,
    MEDIA_TYPES,
    Ask,
    Format,
    Health,
    Issues,
    JobStatus,
    ModelInfo,
    Wish,
)
from autoseg.serving.guard import Guard
from autoseg.serving.jobs import UPLOAD, Job, Jobs, new_id, wishes_of
from autoseg.serving.rules import status_of
from autoseg.serving.uploads import examine, images_of, without_paths
from autoseg.serving.work import Served
from autoseg.storage.atomic import temporary_folder, write_error

PAGES = Path(__file__).parent / "static"
STATIC = {
    **{name: PAGES / name for name in ("page.css", "page.js", "docs.js")},
    viewer.SCRIPT.name: viewer.SCRIPT,
}
"""Files of the pages, by name; nothing else is looked for on the disk."""
SILENT_S = 30.0
"""Without a byte, an upload is given up."""
DRAIN_S = 5.0
"""For what is left of a body that is refused."""
SWEEP_S = 60.0
"""Between two looks for answers that are too old."""
LONGEST_WAIT_S = 3600.0
GONE = 499
"""Nobody reads it: the client has left."""
BODY = {
    "requestBody": {
        "required": True,
        "description": "The file itself: NIfTI, NRRD, MHA, DICOM with all slices, or a zip of a DICOM series or of one image per channel.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": Issues, "description": text}
    for status, text in {
        401: "No token, or another one",
        404: "No such job or file",
        408: "The upload took too long",
        409: "The job is not done",
        413: "The upload is too large",
        415: "Not a file that is taken",
        422: "The image or the request is faulty, or the image could not be predicted",
        503: "The queue is full; Retry-After says when to come again",
        507: "The disk is full",
    }.items()
}
ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file of the first format, where the job ended within wait; the job itself for json",
        "content": {
            name: {"schema": {"type": "string", "format": "binary"}} for name in sorted({*MEDIA_TYPES.values()})
        },
    },
    202: {"description": "The job, which waits or runs"},
}
Wait = Annotated[
    float, Query(ge=0, le=LONGEST_WAIT_S, description="Seconds to wait for the end of the job; 0: answer at once.")
]
JobId = Annotated[str, InPath(pattern=ID_PATTERN)]


def faults(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Some of `FAULTS`, for the description of a request."""
    return {status: FAULTS[status] for status in statuses}


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What requests are answered from."""

    jobs: Jobs
    models: dict[str, Served]
    """By name, on the first device: to examine uploads."""
    devices: tuple[str, ...]
    token: str | None = None
    is_local: bool = True


def make_app(service: Service) -> FastAPI:
    """The application of a service that works already."""
    app = FastAPI(
        title="autoseg",
        version=autoseg.__version__,
        description="Segmentation of medical volumes by trained models. Every error has a body with issues: code, message, and what to do.",
        docs_url=None,
        redoc_url=None,
        lifespan=_sweeping(service.jobs),
    )
    _answer_errors(app, service.jobs)
    _add_pages(app)
    _add_models(app, service)
    _add_jobs(app, service)
    _add_answers(app, service)
    app.add_middleware(Guard, answer=refused, token=service.token, is_local=service.is_local)
    return app


def _sweeping(jobs: Jobs) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def sweeping(app: FastAPI) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(SWEEP_S)
                await run_in_threadpool(jobs.sweep)

        task = asyncio.create_task(sweep())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    return sweeping


def refused(*issues: Issue, retry_after: int = 0) -> JSONResponse:
    """The answer to a request with errors."""
    status = status_of(issues)
    headers = {"Retry-After": str(retry_after)} if status == 503 else {}
    headers |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return JSONResponse(Issues(issues=issues).model_dump(mode="json"), status, headers)


def _answer_errors(app: FastAPI, jobs: Jobs) -> None:
    @app.exception_handler(AutosegError)
    async def of_ours(request: Request, error: AutosegError) -> Response:
        return refused(*error.issues, retry_after=jobs.retry_after)

    @app.exception_handler(RequestValidationError)
    async def of_values(request: Request, error: RequestValidationError) -> Response:
        if any(fault["loc"] == ("path", "job_id") for fault in error.errors()):
            fix = "check the address"
            return refused(Issue(code="serve.unknown_job", where="job", message="no such job", fix=fix))
        return refused(
            *(
                Issue(code="serve.bad_value", where=".".join(map(str, fault["loc"][1:])), message=str(fault["msg"]))
                for fault in error.errors()
            )
        )

    @app.exception_handler(HTTPException)
    async def of_routes(request: Request, error: HTTPException) -> Response:
        where = request.url.path[:80]
        if error.status_code == 405:
            return refused(Issue(code="serve.no_method", where=where, message="takes other methods", fix="see /docs"))
        return refused(Issue(code="serve.not_found", where=where, message="is not there", fix="see /docs"))

    @app.exception_handler(Exception)
    async def of_bugs(request: Request, error: Exception) -> Response:
        message = f"failed unexpectedly: {type(error).__name__}"
        fix = "report it as a bug, with the log of the service"
        return refused(Issue(code="serve.failed", where=request.url.path[:80], message=message, fix=fix))

    @app.exception_handler(ClientDisconnect)
    async def of_leavers(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=GONE)


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGES / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(PAGES / "docs.html")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> FileResponse:
        if name not in STATIC:
            raise HTTPException(404)
        return FileResponse(STATIC[name], headers={"cache-control": "no-cache"})


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["service"])
    async def health() -> Health:
        """Whether the service works, and how busy it is."""
        uploading, waiting, running = service.jobs.counts()
        return Health(
            version=autoseg.__version__,
            devices=service.devices,
            uploading=uploading,
            waiting=waiting,
            running=running,
        )

    @app.get("/models", tags=["service"], responses=faults(401))
    async def models() -> list[ModelInfo]:
        """The models that are loaded, with their channels and classes."""
        return [served.info for served in service.models.values()]


def _add_jobs(app: FastAPI, service: Service) -> None:
    @app.post(
        "/jobs",
        tags=["jobs"],
        status_code=202,
        response_model=JobStatus,
        responses={**ANSWER, **faults(401, 408, 413, 415, 422, 503, 507)},
        openapi_extra=BODY,
    )
    async def segment(
        request: Request,
        model: Annotated[str | None, Query(description="Name of a model; may be left out where there is one.")] = None,
        format: Annotated[
            list[Wish] | None,
            Query(description="What the answer shall have; can be repeated. json: volumes and notes only."),
        ] = None,
        series: Annotated[
            str, Query(pattern=r"^[0-9.]{0,64}$", description="SeriesInstanceUID, where a zip has several series.")
        ] = "",
        wait: Wait = 0.0,
    ) -> Response:
        """Segment an image. Answers with the job, or, after ``wait``, with the file of the first ``format``.

        A client that leaves while it waits cancels the job.
        """
        try:
            name = _model(service, model)
            ask = Ask(model=name, wishes=wishes_of(format or ["nifti"]), images=(".",), series=series)
            job = await receive(request, service, ask)
        except AutosegError:
            await drain(request)
            raise
        where = {"Location": f"/jobs/{job.id}"}
        if wait and not await ends(job, wait, request.receive):
            service.jobs.remove(job.id)
            raise ClientDisconnect
        status = service.jobs.status(job.id)
        is_done = status.state == "done"
        if status.state in ("waiting", "running") or (is_done and ask.wishes[0] == "json"):
            return JSONResponse(status.model_dump(mode="json"), 200 if is_done else 202, where)
        return _file(service, status, ask.wishes[0], headers=where)

    @app.get("/jobs/{job_id}", tags=["jobs"], responses=faults(401, 404))
    async def job(job_id: JobId, request: Request, wait: Wait = 0.0) -> JobStatus:
        """How far a job is, and its answer; after ``wait`` at the latest, or when it has ended."""
        found = service.jobs.find(job_id)
        if wait and isinstance(found, Job):
            await ends(found, wait, request.receive)
        return service.jobs.status(job_id)


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.get(
        "/jobs/{job_id}/{format}", tags=["jobs"], response_class=FileResponse, responses=faults(401, 404, 409, 422)
    )
    async def file(job_id: JobId, format: Format) -> Response:
        """A file of the answer of a job that is done."""
        return _file(service, service.jobs.status(job_id), format)

    @app.delete("/jobs/{job_id}", tags=["jobs"], status_code=204, responses=faults(401, 404))
    async def remove(job_id: JobId) -> Response:
        """Cancel a job, or remove its answer."""
        await run_in_threadpool(service.jobs.remove, job_id)
        return Response(status_code=204)


def _model(service: Service, name: str | None) -> str:
    """The model that is meant. Raises `AutosegError` for one that is not served."""
    known = ", ".join(service.models)
    if name is None and len(service.models) == 1:
        return next(iter(service.models))
    if name not in service.models:
        message = "is missing: several models are served" if name is None else f"{name[:80]!r} is not served"
        raise AutosegError(
            Issue(code="serve.unknown_model", where="model", message=message, fix=f"pass one of {known}")
        )
    return name


def _file(service: Service, status: JobStatus, wish: Wish, headers: dict[str, str] | None = None) -> Response:
    """A file of an answer. Raises `AutosegError` where the job failed, has none, or is not done."""
    if status.state == "failed":
        raise AutosegError(*status.issues)
    if status.state != "done":
        message, fix = f"the job is {status.state}", "ask for it again later, or with wait"
        raise AutosegError(Issue(code="serve.not_done", where=status.id, message=message, fix=fix))
    if wish == "json" or wish not in status.files:
        message, fix = (
            f"the answer has no {wish}",
            f"it has {', '.join(status.files) or 'no files'}: ask for it with the image",
        )
        raise AutosegError(Issue(code="serve.no_file", where=status.id, message=message, fix=fix))
    path = service.jobs.root / status.id / FILE_NAMES[wish]
    return FileResponse(path, media_type=MEDIA_TYPES[wish], filename=path.name, headers=headers)


async def ends(job: Job, wait_s: float, receive_message: Callable[[], Awaitable[Any]]) -> bool:
    """Wait for the end of a job, at most so long; returns False where the client leaves before."""
    ended: asyncio.Future[Any] = asyncio.shield(asyncio.wrap_future(job.ended))
    left: asyncio.Future[Any] = asyncio.ensure_future(_leaves(receive_message))
    done, _ = await asyncio.wait({ended, left}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
    left.cancel()
    return left not in done or ended in done


async def drain(request: Request) -> None:
    """Take what is left of a body, for a while: a client that still sends would see a broken line instead of the answer."""
    if "expect" in request.headers:  # it asks before it sends
        return
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):  # the last where all of it came
        async with asyncio.timeout(DRAIN_S):
            async for _ in request.stream():
                pass


async def _leaves(receive_message: Callable[[], Awaitable[Any]]) -> None:
    """Wait until the client leaves."""
    while (await receive_message())["type"] != "http.disconnect":
        pass  # the end of its request


async def receive(request: Request, service: Service, ask: Ask) -> Job:
    """Store an upload, examine it, and let it wait. Whatever goes wrong, and whenever the client leaves, nothing stays of it."""
    limits, job_id = service.jobs.limits, new_id()
    if request.headers.get("content-type", "").startswith("multipart/"):
        message, fix = "a form", "send the file itself: curl --data-binary @FILE"
        raise AutosegError(Issue(code="serve.multipart", where="body", message=message, fix=fix))
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.upload_bytes:
        raise too_large(limits.upload_bytes)
    with service.jobs.place(), temporary_folder(service.jobs.root / job_id) as staged:
        upload = staged / UPLOAD
        upload.mkdir()
        try:
            await store(request, upload / "body", limits.upload_bytes, limits.timeout_s)
            images = await run_in_threadpool(_examined, upload, ask, service)
        except AutosegError as error:
            raise AutosegError(*without_paths(error.issues, upload)) from error
        except OSError as error:
            raise AutosegError(*without_paths(write_error(upload, error).issues, upload)) from error
        return await run_in_threadpool(service.jobs.add, job_id, staged, ask.model_copy(update={"images": images}))


def _examined(upload: Path, ask: Ask, service: Service) -> tuple[str, ...]:
    """Names of the files of the image in the folder of an upload. Raises `AutosegError` for what cannot be predicted."""
    images = images_of(upload / "body", upload, service.jobs.limits)
    examine(images, ask, service.models[ask.model].predictor)
    return tuple(image.relative_to(upload).as_posix() for image in images)


async def store(request: Request, path: Path, most_bytes: int, timeout_s: float) -> None:
    """Write the body of a request as the file ``path``, byte by byte counted. Raises `AutosegError` for one that is too large or too slow."""
    size, parts = 0, request.stream().__aiter__()
    try:
        with open(path, "xb") as file:
            async with asyncio.timeout(timeout_s):
                while (part := await asyncio.wait_for(anext(parts, None), SILENT_S)) is not None:
                    size += len(part)
                    if size > most_bytes:
                        raise too_large(most_bytes)
                    file.write(part)
    except TimeoutError:
        message, fix = f"nothing came for {SILENT_S:.0f} s, or not all in {timeout_s:.0f} s", "send it again"
        raise AutosegError(Issue(code="serve.slow_upload", where="body", message=message, fix=fix)) from None
    if not size:
        fix = "send the file as the body of the request"
        raise AutosegError(Issue(code="serve.empty", where="body", message="there is none", fix=fix))


def too_large(most_bytes: int) -> AutosegError:
    """The error for an upload that is too large."""
    message, fix = (
        f"more than {most_bytes / 1e6:g} MB",
        "send a smaller image, or start the service with --max-upload-mb",
    )
    return AutosegError(Issue(code="serve.too_large", where="body", message=message, fix=fix))

"""The command `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import autoseg
from autoseg.cli.console import faults, make_reporter, missing, require_sound_call
from autoseg.cli.options import DeviceOption, ThreadsOption
from autoseg.run_folder import find_model

ModelsArgument = Annotated[
    list[Path], typer.Argument(metavar="MODEL...", help="Run folders or bundle files.", show_default=False)
]
HostOption = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on; 0.0.0.0: all.")]
PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: any free one.")]
StateOption = Annotated[Path, typer.Option("--state", help="Folder for waiting uploads and finished answers.")]
QueueOption = Annotated[int, typer.Option("--queue", min=1, help="Jobs that may wait; more are refused (503).")]
UploadOption = Annotated[float, typer.Option("--max-upload-mb", min=0.001, help="Largest upload, in MB.")]
TimeoutOption = Annotated[
    str, typer.Option("--timeout", metavar="TIME", help="Limit for an upload, and for a job, e.g. 90s or 30m.")
]
KeepOption = Annotated[
    str, typer.Option("--keep", metavar="TIME", help="Remove answers that are older, e.g. 30m or 24h.")
]
KeepSizeOption = Annotated[
    float, typer.Option("--keep-gb", min=0.001, help="Remove the oldest answers when all are larger, in GB.")
]
TokenOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file", help="File with a token that requests must send (Authorization: Bearer).", show_default=False
    ),
]
MirroringOption = Annotated[
    bool, typer.Option("--mirroring/--no-mirroring", help="Average over mirrored images if training used mirroring.")
]
MemoryOption = Annotated[
    float | None,
    typer.Option(
        "--memory-gb", min=0.1, help="Limit for main memory, in GB. [default: free memory]", show_default=False
    ),
]


def serve(
    models: ModelsArgument,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    state: StateOption = Path("service"),
    queue: QueueOption = 16,
    max_upload_mb: UploadOption = 1000.0,
    timeout: TimeoutOption = "30m",
    keep: KeepOption = "24h",
    keep_gb: KeepSizeOption = 20.0,
    token_file: TokenOption = None,
    mirroring: MirroringOption = True,
    memory_gb: MemoryOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Serve models over HTTP, with a web page: upload a volume, see and download its segmentation. Ctrl-C stops it.

    Models stay loaded; one image at a time is segmented on each device. Finished answers outlive the process, and jobs that wait go on when it is started again.
    """
    require_sound_call(
        *(faults(find_model, model) for model in models),
        missing(token_file, code="serve.token_file", fix="pass a file with a token"),
        settings={"device": device},
    )
    autoseg.serve(
        models, host=host, port=port, state=state, queue=queue, max_upload_mb=max_upload_mb, timeout=timeout, keep=keep,
        keep_gb=keep_gb, token_file=token_file, mirroring=mirroring, memory_gb=memory_gb, device=device, threads=threads,
        reporter=make_reporter(),
    )  # fmt: skip

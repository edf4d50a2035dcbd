"""Images as files, without Docker: written from a base file system and a build context, checked, and unpacked again.

What is written is a hybrid: the layout of OCI (``oci-layout``, ``index.json``, ``blobs/sha256``) with the ``manifest.json``
of ``docker save``, as Docker 25 and later write it. The same inputs give the same bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath
from typing import IO, Any

from autoseg.delivery.container.context import (
    APP,
    LABEL,
    MODEL_FOLDER,
    USER_ID,
    ImageConfig,
    closure,
    image_config,
    plain_member,
)
from autoseg.delivery.container.program import ContainerProgram
from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import atomic_write, temporary_folder
from autoseg.tracking.progress import Reporter

LARGEST_IMAGE = 10e9
"""Bytes; pages of challenges state it, the platform does not enforce it."""
HEX = re.compile(r"(sha256:)?[0-9a-f]{64}(\.json)?")
PYTHON = re.compile(r"(.*/)?lib/python3\.\d+/os\.py")
"""A file of every Python's library."""
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
OCI = "application/vnd.oci.image"
CHUNK = 1 << 20
UNMOVED = "1970-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """An uncompressed tar on the disk."""

    path: Path
    digest: str
    size: int


# --- writing ---


def write_image(
    context: Path,
    program: ContainerProgram,
    base: Path,
    out: Path,
    *,
    method: str,
    tag: str,
    reporter: Reporter,
    distributions: Iterable[str] | None = None,
) -> str:
    """Write the image of a build ``context`` on ``base`` as ``out``, gzipped where its name says so; returns the image's id.

    ``base`` is a tar of a root file system that has Python of the running version, or one of ``docker save``. Packages are
    those installed here: ``distributions``, or all that autoseg needs. Raises `AutosegError` where ``base`` is neither, or ``out`` cannot be written.
    """
    config = image_config(program.table.kind, method)
    with temporary_folder(out.with_name(f"{out.name}.layers")) as folder:
        with reporter.phase("Reading the base image"):
            layers, inherited = base_layers(base, folder)
        users, site = _users(layers), _site_folder(layers, base)
        with reporter.phase("Packing Python packages"):
            layers.append(
                _layer(folder / "packages.tar", _packages(site, closure() if distributions is None else distributions))
            )
        layers.append(_layer(folder / "app.tar", [*_user_files(users), *_app(context, program)]))
        with reporter.phase("Writing the image"), atomic_write(out) as raw, _packed(raw, out) as file:
            return _write_hybrid(file, layers, config, inherited, tag)


@contextmanager
def _packed(raw: IO[bytes], out: Path) -> Iterator[IO[bytes]]:
    if out.suffix != ".gz":
        yield raw
        return
    with gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed:
        yield packed  # type: ignore[misc]  # it is a binary file


Member = tuple[tarfile.TarInfo, Callable[[], IO[bytes]] | None]


def _layer(path: Path, members: Iterable[Member]) -> Layer:
    """A layer of these members, each path once, parents first, all of root unless the member says otherwise."""
    found: dict[str, Member] = {}
    for member, content in members:
        for parent in reversed(PurePosixPath(member.name).parents):
            if str(parent) != "." and str(parent) not in found:
                found[str(parent)] = _folder(str(parent))
        found.setdefault(member.name, (member, content))
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted(found):
            member, content = found[name]
            if content is None:
                archive.addfile(member)
            else:
                with content() as stream:
                    archive.addfile(member, stream)
    return _on_disk(path)


def _on_disk(path: Path) -> Layer:
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return Layer(path=path, digest=digest.hexdigest(), size=path.stat().st_size)


def _folder(name: str, *, mode: int = 0o755, user: int = 0) -> Member:
    member = plain_member(name, mode=mode)
    member.type, member.uid, member.gid = tarfile.DIRTYPE, user, user
    return member, None


def _file(name: str, source: Path) -> Member:
    status = source.stat()
    mode = 0o755 if status.st_mode & 0o100 else 0o644
    return plain_member(name, size=status.st_size, mode=mode), lambda: source.open("rb")


def _text(name: str, text: str) -> Member:
    content = text.encode()
    return plain_member(name, size=len(content), mode=0o644), lambda: io.BytesIO(content)


def _site_folder(layers: Iterable[Layer], base: Path) -> str:
    """Where the Python of a base looks for packages. Raises `AutosegError` where it has none of the running version."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = set()
    for layer in layers:
        with tarfile.open(layer.path) as archive:
            found |= {
                name.removeprefix("./") for name in archive.getnames() if PYTHON.fullmatch(name.removeprefix("./"))
            }
    homes = sorted(PurePosixPath(name).parent for name in found)
    fits = [home for home in homes if home.name == version]
    if not fits:
        message = f"has {' and '.join(sorted({home.name for home in homes})) or 'no Python'}, but the packages here are for {version}"
        raise AutosegError(
            Issue(code="container.base_python", where=str(base), message=message, fix=f"pass a base with {version}")
        )
    if PurePosixPath("usr/lib", version) in fits:  # Debian's
        return f"usr/local/lib/{version}/dist-packages"
    return f"{fits[0]}/site-packages"


def _packages(site: str, distributions: Iterable[str]) -> Iterator[Member]:
    """Files of installed distributions, below ``site`` as they lie in ``site-packages`` here."""
    for name in distributions:
        installed = distribution(name)
        for file in installed.files or ():
            if ".." in file.parts or "__pycache__" in file.parts or file.is_absolute():
                continue  # scripts, and what this machine compiled
            path = Path(str(installed.locate_file(file)))
            if path.is_file():
                yield _file(f"{site}/{PurePosixPath(file)}", path)


def _app(context: Path, program: ContainerProgram) -> Iterator[Member]:
    app, table = context / "app", program.table
    for path in sorted(app.rglob("*")):
        name = f"{APP[1:]}/{path.relative_to(app).as_posix()}"
        if path.is_file() and "__pycache__" not in path.parts:
            yield _file(name, path)
    if (script := context / "predict.sh").is_file():
        yield _file("workspace/predict.sh", script)
    yield _folder(table.input[1:])
    yield _folder(table.output[1:], mode=0o777)
    yield _folder(MODEL_FOLDER[1:])


def _users(layers: Iterable[Layer]) -> dict[str, str]:
    """Texts of passwd and group of a root file system."""
    found = {"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n"}
    for layer in layers:
        with tarfile.open(layer.path) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if name in found and (content := archive.extractfile(member)) is not None:
                    found[name] = content.read().decode()
    return found


def _user_files(texts: Mapping[str, str]) -> Iterator[Member]:
    """The user that the program runs as, and its home."""
    lines = {"etc/passwd": f"user:x:{USER_ID}:{USER_ID}::/home/user:/bin/sh\n", "etc/group": f"user:x:{USER_ID}:\n"}
    for name, line in lines.items():
        kept = "".join(each for each in texts[name].splitlines(keepends=True) if each.split(":")[2] != str(USER_ID))
        yield _text(name, kept + line)
    yield _folder("home/user", user=USER_ID)


def base_layers(base: Path, folder: Path) -> tuple[list[Layer], dict[str, Any]]:
    """Layers of a base, in ``folder``, and the configuration it has, if any: a root file system is one layer without any."""
    try:
        plain = _unpacked(base, folder / "base.tar")
        with tarfile.open(plain) as archive:
            names = {name.removeprefix("./") for name in archive.getnames()}
        if "manifest.json" in names:
            with opened_image(plain) as image:
                config = image.config.get("config", {})
                return [_copy(image, name, folder / f"base{i}.tar") for i, name in enumerate(image.layers)], config
    except (tarfile.TarError, OSError, EOFError, lzma.LZMAError) as error:
        fix = "pass a tar of a root file system, or the output of docker save"
        raise AutosegError(_issue(base, f"is not a tar archive ({error})", fix)) from error
    if not any(name.startswith(("usr/", "bin/")) for name in names):
        fix = "pass a tar with usr, bin, lib ... at its root, or the output of docker save"
        raise AutosegError(_issue(base, "has no root file system in it", fix))
    return [_on_disk(plain)], {}


def _unpacked(path: Path, target: Path) -> Path:
    """``path`` itself, or, where it is packed with gzip or xz, ``target`` with its content."""
    with path.open("rb") as file:
        begin = file.read(6)
    opener: Any = gzip.open if begin.startswith(b"\x1f\x8b") else lzma.open if begin.startswith(b"\xfd7zXZ") else None
    if opener is None:
        return path
    with opener(path, "rb") as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, CHUNK)
    return target


def _copy(image: OpenImage, name: str, target: Path) -> Layer:
    part = target.with_suffix(".part")
    with image.open(name) as source, part.open("wb") as copy:
        shutil.copyfileobj(source, copy, CHUNK)
    if (plain := _unpacked(part, target)) == part:
        part.rename(target)
    elif plain == target:
        part.unlink()
    return _on_disk(target)


def _write_hybrid(
    file: IO[bytes], layers: list[Layer], config: ImageConfig, inherited: Mapping[str, Any], tag: str
) -> str:
    described = json.dumps(_image_json(layers, config, inherited)).encode()
    image_id = sha256(described).hexdigest()
    parts = [
        {"mediaType": f"{OCI}.layer.v1.tar", "digest": f"sha256:{layer.digest}", "size": layer.size} for layer in layers
    ]
    about = {"mediaType": f"{OCI}.config.v1+json", "digest": f"sha256:{image_id}", "size": len(described)}
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": about, "layers": parts}
    ).encode()
    digest = sha256(manifest).hexdigest()
    named = {
        "io.containerd.image.name": f"docker.io/library/{tag}:latest",
        "org.opencontainers.image.ref.name": "latest",
    }
    entry = {
        "mediaType": f"{OCI}.manifest.v1+json",
        "digest": f"sha256:{digest}",
        "size": len(manifest),
        "annotations": named,
    }
    index = json.dumps({"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": [entry]})
    docker = {
        "Config": _blob(image_id),
        "RepoTags": [f"{tag}:latest"],
        "Layers": [_blob(layer.digest) for layer in layers],
    }
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name in ("blobs", "blobs/sha256"):
            archive.addfile(_folder(name)[0])
        for layer in {layer.digest: layer for layer in layers}.values():
            with layer.path.open("rb") as content:
                archive.addfile(plain_member(_blob(layer.digest), size=layer.size), content)
        texts = {_blob(image_id): described, _blob(digest): manifest, "index.json": index.encode()}
        texts["oci-layout"] = json.dumps({"imageLayoutVersion": "1.0.0"}).encode()
        texts["manifest.json"] = json.dumps([docker]).encode()
        for name, text in texts.items():
            archive.addfile(plain_member(name, size=len(text)), io.BytesIO(text))
    return image_id


def _blob(digest: str) -> str:
    return f"blobs/sha256/{digest}"


def _image_json(layers: list[Layer], config: ImageConfig, inherited: Mapping[str, Any]) -> dict[str, Any]:
    env = dict(line.split("=", 1) for line in inherited.get("Env") or ())
    env.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    env |= dict(config.env)
    run: dict[str, Any] = {
        "User": config.user,
        "Env": [f"{name}={value}" for name, value in env.items()],
        "Cmd": list(config.cmd),
        "WorkingDir": config.workdir,
        "Labels": dict(config.labels),
    }
    if config.entrypoint:
        run["Entrypoint"] = list(config.entrypoint)
    if config.ports:
        run["ExposedPorts"] = {f"{port}/tcp": {} for port in config.ports}
    diffs = [f"sha256:{layer.digest}" for layer in layers]
    history = [{"created": UNMOVED, "created_by": "autoseg container"} for _ in layers]
    return {
        "architecture": "amd64",
        "os": "linux",
        "created": UNMOVED,
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": diffs},
        "history": history,
    }


# --- reading ---


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenImage:
    """An image file that is open; ``config`` is its whole JSON."""

    archive: tarfile.TarFile
    entry: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def layers(self) -> list[str]:
        """Names of the layers in the archive, the lowest first."""
        return list(self.entry["Layers"])

    def open(self, name: str) -> IO[bytes]:
        """A file of the archive. Raises `KeyError` where there is none."""
        member = self.archive.getmember(name)
        content = self.archive.extractfile(member)
        if content is None:
            raise KeyError(name)
        return content


@contextmanager
def opened_image(path: Path) -> Iterator[OpenImage]:
    """An image as ``docker save`` writes it, plain or packed. Raises `AutosegError` for another file."""
    fix = "pass a folder of autoseg container, or a file of docker save"
    try:
        with tarfile.open(path) as archive:
            listed = json.load(_member(archive, "manifest.json"))
            config = json.load(_member(archive, listed[0]["Config"]))
            yield OpenImage(archive=archive, entry=listed[0], config=config)
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError, IndexError, TypeError) as error:
        raise AutosegError(_issue(path, f"is not an image ({error})", fix)) from error


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    content = archive.extractfile(name)
    if content is None:
        raise KeyError(name)
    return content


def upload_issues(path: Path, *, served: bool = True) -> list[Issue]:
    """What grand-challenge refuses of an image file at its upload; of others (``served`` false) only what nobody can run."""
    issues = []

    def refuse(message: str, fix: str, code: str = "container.image_refused") -> None:
        issues.append(Issue(code=code, where=str(path), message=message, fix=fix))

    with tarfile.open(path) as archive:
        listed = json.load(_member(archive, "manifest.json"))
    if len(listed) != 1:
        refuse(f"has {len(listed)} images", "save one image")
    with opened_image(path) as image:
        config = image.config.get("config") or {}
        if not HEX.fullmatch(PurePosixPath(image.entry["Config"]).name):
            refuse(f"has a configuration named {image.entry['Config']}, not by its hash", "save it with docker save")
        if image.config.get("architecture") != "amd64":
            refuse(f"is for {image.config.get('architecture')}", "build for linux/amd64")
        labels = {str(key).strip().lower(): str(value) for key, value in (config.get("Labels") or {}).items()}
        method = labels.get(LABEL, "exec").strip("\"'").lower()
        if served and method not in ("exec", "invoke"):
            refuse(f"has the label {LABEL}={method}", "use exec or invoke")
        user = str(config.get("User") or "")
        if served and user.partition(":")[0].lower() in ("", "root", "0"):
            refuse(f"runs as {user or 'root'}", "set a user that is not root")
    if not path.name.endswith((".tar", ".tar.gz", ".tar.xz")):
        refuse("is no .tar, .tar.gz or .tar.xz", "rename it")
    if (size := path.stat().st_size) > LARGEST_IMAGE:
        refuse(
            f"has {size / 1e9:.1f} GB; challenges state a limit of {LARGEST_IMAGE / 1e9:.0f} GB",
            "use a smaller base image",
        )
    return issues


def read_config(config: Mapping[str, Any]) -> ImageConfig:
    """How an image is started, from its JSON; a command as text is one for a shell."""
    run = config.get("config") or {}
    return ImageConfig(
        user=str(run.get("User") or "0:0"),
        env=tuple((name, value) for name, _, value in (line.partition("=") for line in run.get("Env") or ())),
        entrypoint=_command(run.get("Entrypoint")),
        cmd=_command(run.get("Cmd")),
        workdir=run.get("WorkingDir") or "/",
        labels=tuple((str(key).strip().lower(), str(value)) for key, value in (run.get("Labels") or {}).items()),
    )


def _command(words: Any) -> tuple[str, ...]:
    return ("/bin/sh", "-c", words) if isinstance(words, str) else tuple(words or ())


def unpack_image(path: Path, folder: Path) -> ImageConfig:
    """Unpack the file system of an image into the new ``folder``, layer by layer, and return how it is started.

    Nothing is written outside of ``folder``, whatever the names and links in the layers are. Owners are kept for root.
    """
    folder.mkdir(parents=True)
    with opened_image(path) as image:
        for name in image.layers:
            with image.open(name) as stream, tarfile.open(fileobj=stream) as layer:
                _apply(layer, folder)
        return read_config(image.config)


def _apply(layer: tarfile.TarFile, folder: Path) -> None:
    for member in layer:
        name = PurePosixPath(member.name.lstrip("/"))
        if ".." in name.parts or member.isdev():
            continue
        parent = folder.joinpath(*name.parts[:-1])
        if not _is_inside(parent, folder):
            continue
        if name.name.startswith(WHITEOUT):
            _remove(parent, name.name)
            continue
        target = folder / name
        if target.is_symlink() or (target.exists() and not (target.is_dir() and member.isdir())):
            _delete(target)
        if member.islnk() and not _is_inside(folder / member.linkname.lstrip("/"), folder):
            continue
        member.name = str(name)
        layer.extract(member, folder, set_attrs=True, numeric_owner=True, filter="fully_trusted")


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path leads into ``folder`` through links, too."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _remove(parent: Path, name: str) -> None:
    """What a whiteout file of a layer says: one entry, or all of the folder."""
    if name == OPAQUE:
        for entry in parent.iterdir():
            _delete(entry)
    else:
        _delete(parent / name.removeprefix(WHITEOUT))


def _delete(path: Path) -> None:
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _issue(where: Path, message: str, fix: str) -> Issue:
    return Issue(code="container.not_an_image", where=str(where), message=message, fix=fix)

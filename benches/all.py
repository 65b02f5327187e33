#!/usr/bin/env python3
"""Runs every bench that can run and writes all their tables to one Markdown file.

    python3 benches/all.py                      takes most of an hour; nothing else should run on the machine
    python3 benches/all.py --quick              runs a small version of each, which shows that everything works
    python3 benches/all.py --only engine        runs some of them
    python3 benches/all.py --install            installs the peers, or those that are named, and ends

A peer that is not installed is left out, and the file says what installs it. A bench that fails does not end the others.
"""
import argparse
import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path

import peers
from measure import HERE, TARGET, VLMDIFF, need_vlmdiff


def script(name, *more):
    return [sys.executable, HERE / f"{name}.py", *more]


def cargo(name, *more):
    return ["cargo", "bench", "--quiet", "--profile", "dev", "--bench", name, "--", *more]


def benches(folder: Path, quick: bool) -> dict[str, tuple[str, list]]:
    """Returns the title and the command of each bench."""
    small = lambda *words: words if quick else ()
    return {
        "engine": ("The engine", script("engine", "--output", folder, *small("--quick"))),
        "row_cost": ("The engine beside a bare loop", cargo("row_cost", *small("--quick"))),
        "networks": ("Networks", cargo("networks", *small("clip-text", "resnet50", "--rounds", "1"))),
        "captioning": ("Captions", script("captioning", *small("--small", "--tokens", "4"))),
        "loading": ("Weights", script("loading", *small("--megabytes", "64", "--rounds", "1"))),
        "metrics": ("Metrics", script("metrics", *small("--maps", "10"))),
        "inspection": ("From photographs to anomaly maps", script("inspection", *small("--train", "12", "--test", "12", "--more", "24", "--rounds", "1"))),
        "growing": ("A photograph more", script("growing", *small("--photographs", "100", "--rounds", "1"))),
        "serving": ("The server", script("serving", *small("--clients", "8", "--seconds", "6"))),
        "python": ("SQL into Python", script("python", *small("-n", "3", "--rows", "10000"))),
        "flight": ("SQL to other programs", script("flight", *small("--rows", "20000", "-n", "1", "--clients", "8", "--seconds", "6"))),
        "cluster": ("Workers and a cluster", script("cluster", *small("--quick", "--rounds", "1"))),
        "ingest": ("Photographs into tensors", script("ingest", *small("-n", "1", "--images", "40"))),
        "scale": ("Up to 1,000 workers and 10⁸ rows, simulated", script("scale", *small("--rows", "100000"))),
        "listing": ("The listing of a large data set", script("listing", *small("-n", "1", "--images", "3000"))),
    }


def read(file: str, key: str) -> str:
    """Returns the first value of a key in one of the kernel's files."""
    lines = Path(file).read_text().splitlines() if Path(file).exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "unknown")


def head(quick: bool) -> str:
    """Returns the head of the file: date, machine, and versions of vlmdiff and its peers."""
    version = subprocess.run([VLMDIFF, "--version"], capture_output=True, text=True).stdout.strip()
    memory = read("/proc/meminfo", "MemTotal").removesuffix(" kB")
    facts = {
        "date": datetime.datetime.now().astimezone().isoformat(" ", "minutes"),
        "program": version,
        "processor": f"{read('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores",
        "memory": f"{int(memory) / 2**20:.0f} GiB" if memory.isdigit() else memory,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load before the first bench": f"{os.getloadavg()[0]:.1f} processes",
    }
    for name, peer in peers.PEERS.items():
        versions = ", ".join(f"{package} {version}" for package, version in peers.versions(name).items())
        facts[peer.title] = versions or f"not installed; to install: `{peers.how(name)}`"
    lines = ["# Speed", "", *(["Small versions, which show that everything works and no more.", ""] if quick else []), "| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in facts.items()), ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=TARGET / "bench/results.md", help="the Markdown file")
    parser.add_argument("--quick", action="store_true", help="a small version of each")
    parser.add_argument("--only", help=f"some of {','.join(benches(Path(), False))}")
    parser.add_argument("--install", nargs="*", metavar="NAME", help=f"install {', '.join(peers.PEERS)}, or those named, and end")
    options = parser.parse_args()
    if options.install is not None:
        unknown = [name for name in options.install if name not in peers.PEERS]
        if unknown:
            parser.error(f"no peer {unknown[0]}; there are {', '.join(peers.PEERS)}")
        sys.exit(not all([peers.install(name) for name in options.install or peers.PEERS]))
    output = options.output.resolve()
    known = benches(output.parent, options.quick)
    chosen = options.only.split(",") if options.only else list(known)
    for name in chosen:
        if name not in known:
            parser.error(f"no bench {name}; there are {', '.join(known)}")
    need_vlmdiff()
    output.parent.mkdir(parents=True, exist_ok=True)
    text, failed = head(options.quick), {}
    for name in chosen:
        title, command = known[name]
        print(f"{title}: {' '.join(map(str, command))}", file=sys.stderr, flush=True)
        try:
            done = subprocess.run(list(map(str, command)), cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
            code, said = done.returncode, done.stdout
        except FileNotFoundError:
            code, said = 127, f"{command[0]} is not installed.\n"
            print(said, end="", file=sys.stderr)
        text += f"\n## {title}\n\n{said}"
        if code != 0:
            failed[name] = code
            text += f"\n**Failed** with exit code {code}: what is missing above was not measured.\n"
        # The file is written after each bench, so that an interruption keeps the results so far.
        output.write_text(text)
    print(text)
    print(f"Written to {output}", file=sys.stderr)
    for name, code in failed.items():
        print(f"{name} failed with exit code {code}; its message is above.", file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)

#!/usr/bin/env python3
"""Checks an archive of setup/release.py on a root file system that has nothing but the libraries of a bare Debian.

    python3 setup/check_release.py [ARCHIVE]          by default the one that release.py has just made

It checks the digests, and that no file needs a newer glibc or libstdc++ than Ubuntu 22.04 has. It then unpacks into an empty folder,
adds the libraries of the system, and runs the programs there as in a container, with no environment: a version, a training with
the worker, and a query. Needs root, or user namespaces.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile

import toy
from fetch import fail, say
from release import OF_SYSTEM, SUMS, archive_file, digest, files_in

# The newest symbols of Ubuntu 22.04, which is older than Debian 12.
NEWEST = {"GLIBC": (2, 35), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13)}

PIPELINE = toy.pipeline("dataset: folder, root: /srv/data")

# Runs a program in a root file system with the kernel's /proc and /dev, as containers have them.
ENTER = 'mount --rbind /proc "$1/proc" && mount --rbind /dev "$1/dev" && exec env -i /usr/sbin/chroot "$@"'


def is_program(file):
    with open(file, "rb") as opened:
        return opened.read(4) == b"\x7fELF"


def unpack(archive, folder):
    """Unpacks the archive and checks its digests. Returns the folder in it."""
    with tarfile.open(archive) as tar:
        for member in tar:
            # Everything in the archive is a plain file.
            if not member.isfile() or member.name.startswith("/") or ".." in pathlib.PurePath(member.name).parts:
                fail(f"{archive} has {member.name}, which is no file below its folder")
            tar.extract(member, folder)
    (tree,) = folder.iterdir()
    sums = dict(line.split("  ")[::-1] for line in (tree / SUMS).read_text().splitlines())
    if sums != {file: digest(tree / file) for file in files_in(tree) if file != SUMS}:
        fail(f"the files of {archive} are not those of its {SUMS}")
    return tree


def symbols(tree):
    """Checks which versions of the system's libraries are needed."""
    newest = {}
    for file in filter(is_program, (tree / name for name in files_in(tree))):
        needed = subprocess.run(["objdump", "-T", file], capture_output=True, text=True, check=True).stdout
        for name, version in re.findall(r"\b(GLIBC|GLIBCXX|CXXABI)_([0-9.]+)\b", needed):
            version = tuple(map(int, version.split(".")))
            if version > NEWEST[name]:
                fail(f"{file.relative_to(tree)} needs {name}_{'.'.join(map(str, version))}, which Ubuntu 22.04 lacks")
            newest[name] = max(newest.get(name, (0,)), version)
    say("needed: " + ", ".join(f"{name} {'.'.join(map(str, version))}" for name, version in sorted(newest.items())))


def bare(root):
    """Adds to a root file system the libraries that every Debian has, and empty folders."""
    for name in ("proc", "dev", "tmp", "srv", "lib64", "lib/x86_64-linux-gnu"):
        (root / name).mkdir(parents=True)
    known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    for name, file in re.findall(r"^\s+(\S+) \(libc6,x86-64[^)]*\) => (\S+)$", known, re.MULTILINE):
        if OF_SYSTEM.fullmatch(name):
            folder = "lib64" if name.startswith("ld-linux") else "lib/x86_64-linux-gnu"
            shutil.copyfile(file, root / folder / name)
            (root / folder / name).chmod(0o755)


def run(root, *words, status=0):
    """Runs a program in a root file system, without an environment; returns what it prints."""
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", ENTER, "sh", str(root), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != status:
        fail(f"`{' '.join(map(str, words))}` ended with {done.returncode}: {done.stderr}")
    return done.stdout


def main(archive):
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        (root / "opt").mkdir()
        tree = unpack(archive, root / "opt")
        symbols(tree)
        bare(root)
        (root / "srv/toy.yaml").write_text(PIPELINE)
        vlmdiff, store = f"/opt/{tree.name}/bin/vlmdiff", ("--store", "/srv/store")
        say(run(root, vlmdiff, "--version").strip())
        synth = "synth /srv/data --size 48 --classes tile --train 4 --test-good 1 --test-per-defect 1"
        run(root, vlmdiff, *synth.split())
        run(root, vlmdiff, "run", "/srv/toy.yaml", "--quiet", *store)
        answer = run(root, vlmdiff, "sql", "select count(*) as n from latents", "--format", "csv", *store).split()
        if answer[0] != "n" or int(answer[1]) < 5:
            fail(f"the latents are {answer}")
        run(root, vlmdiff, "plan", f"/opt/{tree.name}/share/vlmdiff/pipelines/nothing.yaml", status=2)
        say(f"{archive}: its programs run on a bare system: {answer[1]} latents by a network that was trained there")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if sys.argv[1:] else archive_file())

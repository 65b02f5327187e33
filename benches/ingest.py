#!/usr/bin/env python3
"""Times the reading of photographs into 256x256 tensors: the computation of vlmdiff's `ingest` (decoding, resizing, masks), the whole
of `vlmdiff run` from the start of the process to the published table, and a torchvision DataLoader with a worker for each core.

    python3 benches/ingest.py [-n 5] [--images 400] [--photographs DIR]

benches/README.md describes it. If torchvision is not installed, vlmdiff is measured alone, and only on PNG, because Pillow writes the
JPEG. The script starts itself with the interpreter that has both: with `--loader DIR` for the peer, with `--jpeg DIR` for JPEG.
"""
import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import peers
from measure import VLMDIFF, Failed, built, environment, need_vlmdiff

PYTHON = [peers.program("networks"), __file__]
SIDE, SIZE, BATCH, CORES = 1024, 256, 32, os.cpu_count()
PIPELINE = f"name: ingest\ntables: {{ images: {{ stage: ingest, with: {{ dataset: folder, root: %s, size: {SIZE} }} }} }}\n"


def listed(root: Path) -> list[tuple[Path, Path | None]]:
    """Returns the images with their masks, in MVTec layout."""
    images = sorted(path for path in root.glob("*/*/*/*") if path.parent.parent.name in ("train", "test"))
    mask = lambda image: root / image.parts[-4] / "ground_truth" / image.parent.name / f"{image.stem}_mask.png"
    return [(image, mask(image) if mask(image).exists() else None) for image in images]


def loader(root: Path) -> None:
    """Runs the peer as a training script would. Prints the seconds from the start of the first worker to the last batch."""
    import torch
    from PIL import Image
    from torchvision import transforms

    class Photographs(torch.utils.data.Dataset):
        def __init__(self):
            self.files = listed(root)
            self.transform = transforms.Compose([transforms.Resize((SIZE, SIZE)), transforms.ToTensor()])

        def __len__(self):
            return len(self.files)

        def __getitem__(self, index):
            image, mask = self.files[index]
            pixels = self.transform(Image.open(image).convert("RGB"))
            if mask is None:
                return pixels, torch.zeros(1, SIZE, SIZE)
            return pixels, self.transform(Image.open(mask).convert("L"))

    started, seen = time.monotonic(), 0
    for pixels, _ in torch.utils.data.DataLoader(Photographs(), batch_size=BATCH, num_workers=CORES):
        seen += len(pixels)
    print(json.dumps({"seconds": time.monotonic() - started, "images": seen}))


def photograph(folder: Path, count: int) -> Path:
    """Makes `count` photographs as PNG: some distinct pictures under many names, so that each is read and decoded again."""
    made, root = folder / "made", folder / f"png-{count}"
    if not made.exists():
        call([VLMDIFF, "synth", made, "--size", SIDE, *"--classes gear,wood --train 6 --test-good 1 --test-per-defect 1".split()])
    pictures = listed(made)
    for number in range(0 if root.exists() else count):
        image, mask = pictures[number % len(pictures)]
        name, split, defect, _ = image.parts[-4:]
        copy(image, root / name / split / defect / f"{number:05}.png")
        if mask:
            copy(mask, root / name / "ground_truth" / defect / f"{number:05}_mask.png")
    return root


def copy(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, place)


def jpeg(png: Path) -> None:
    """Writes the same photographs as JPEG with masks of PNG, beside the PNGs."""
    from PIL import Image

    root = beside(png)
    for image, mask in listed(png):
        place = root / image.relative_to(png).with_suffix(".jpg")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(image).convert("RGB").save(place, quality=95)
        if mask:
            copy(mask, root / mask.relative_to(png))


def beside(png: Path) -> Path:
    return png.with_name(png.name.replace("png", "jpeg"))


def call(command, **more) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, **{"env": environment(), **more})
    if done.returncode != 0:
        raise Failed(f"{' '.join(words)}: {done.stdout}{done.stderr}"[-3000:])
    return done.stdout


def processors() -> float:
    """Returns the processor seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def ours(root: Path, count: int) -> tuple[float, float]:
    """Runs vlmdiff into a fresh store, without remembered digests of files. Returns wall-clock and processor seconds."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pipeline.yaml").write_text(PIPELINE % root)
        before, started = processors(), time.monotonic()
        here = dict(cwd=folder, env={**environment(), "VLMDIFF_CACHE": f"{folder}/cache"})
        call([VLMDIFF, "run", "pipeline.yaml", "--quiet"], **here)
        seconds, cpu = time.monotonic() - started, processors() - before
        rows = call([VLMDIFF, "sql", "select count(*) from images", "--format", "csv"], **here).split()[-1]
        if rows != str(count):
            raise Failed(f"vlmdiff published {rows} rows of {count} photographs")
    return seconds, cpu


program = cache(lambda: built("ingest"))


def work(root: Path, count: int) -> tuple[float, float]:
    """Runs the computation of `ingest` alone, without a store."""
    lines = "".join(f"{image}\t{mask or ''}\n" for image, mask in listed(root))
    before = processors()
    said = json.loads(call([program()], input=lines))
    return said["seconds"], processors() - before


def peer(root: Path, count: int) -> tuple[float, float]:
    before = processors()
    said = json.loads(call([*PYTHON, "--loader", root]))
    if said["images"] != count:
        raise Failed(f"the DataLoader gave {said['images']} of {count} photographs")
    return said["seconds"], processors() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=5, help="rounds that count; one more comes first")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--photographs", type=Path, help="where photographs are kept between runs")
    parser.add_argument("--loader", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--jpeg", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loader:
        return loader(arguments.loader)
    if arguments.jpeg:
        return jpeg(arguments.jpeg)
    need_vlmdiff()
    missing, count = peers.say_missing("networks"), arguments.images
    program()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.photographs or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        roots = {"PNG": photograph(folder, count)}
        if not missing:
            roots["JPEG"] = beside(roots["PNG"])
            if not roots["JPEG"].exists():
                call([*PYTHON, "--jpeg", roots["PNG"]])
        print(f"{count} photographs of {SIDE}x{SIDE} to {SIZE}x{SIZE}, {CORES} cores; median of {arguments.n} (lowest to highest)\n")
        print("| files | | images/s | processor per image, with the process's start | beside the DataLoader |\n|---|---|---|---|---|")
        for kind, root in roots.items():
            times = {work: [], ours: [], **({} if missing else {peer: []})}
            for _ in range(arguments.n + 1):
                for system, runs in times.items():
                    runs.append(system(root, count))
            rates = {system: sorted(count / wall for wall, _ in runs[1:]) for system, runs in times.items()}
            cpu = {system: statistics.median(cpu for _, cpu in runs[1:]) / count * 1e3 for system, runs in times.items()}
            for system, name in ((peer, "DataLoader"), (work, "vlmdiff, the work"), (ours, "`vlmdiff run`")):
                if system not in times:
                    print(f"| {kind} | {name} | not installed | | |")
                    continue
                rate = rates[system]
                ratio = "" if missing else f"{statistics.median(rate) / statistics.median(rates[peer]):.2f}x"
                print(f"| {kind} | {name} | {statistics.median(rate):.0f} ({rate[0]:.0f} to {rate[-1]:.0f}) | {cpu[system]:.1f} ms | {ratio} |",
                      flush=True)
        if missing:
            print("| JPEG | | not measured: Pillow, which writes the files, is not installed | | |")


if __name__ == "__main__":
    main()

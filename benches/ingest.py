#!/usr/bin/env python3
"""Photographs into 256x256 tensors, beside a torchvision DataLoader with as many workers as there are cores: what vlmdiff's `ingest`
computes (decoding, resizing, masks), and the whole of `vlmdiff run`, from the start of the process to the published table.

    benches/.venvs/networks/bin/python benches/ingest.py [-n 5] [--images 400] [--photographs DIR]

benches/README.md says what it does. It runs itself again with `--loader DIR` for the peer.
"""
import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target"))
VLMDIFF = Path(os.environ.get("VLMDIFF", TARGET / "debug/vlmdiff")).resolve()
SIDE, SIZE, BATCH, CORES = 1024, 256, 32, os.cpu_count()
PIPELINE = f"name: ingest\ntables: {{ images: {{ stage: ingest, with: {{ dataset: folder, root: %s, size: {SIZE} }} }} }}\n"


def listed(root: Path) -> list[tuple[Path, Path | None]]:
    """Images with their masks, in MVTec layout."""
    images = sorted(path for path in root.glob("*/*/*/*") if path.parent.parent.name in ("train", "test"))
    mask = lambda image: root / image.parts[-4] / "ground_truth" / image.parent.name / f"{image.stem}_mask.png"
    return [(image, mask(image) if mask(image).exists() else None) for image in images]


def loader(root: Path) -> None:
    """The peer: what a training script would write. Prints seconds, from the first worker's start to the last batch."""
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


def photograph(folder: Path, count: int) -> dict[str, Path]:
    """`count` photographs as PNG and as JPEG: some distinct pictures under many names, each read and decoded again."""
    from PIL import Image

    made = folder / "made"
    if not made.exists():
        words = ["--size", SIDE, "--classes", "gear,wood", "--train", 6, "--test-good", 1, "--test-per-defect", 1]
        subprocess.run(list(map(str, [VLMDIFF, "synth", made, *words])), check=True, stdout=subprocess.DEVNULL)
    roots = {kind: folder / f"{kind}-{count}" for kind in ("png", "jpeg")}
    pictures = listed(made)
    for kind, root in roots.items():
        if root.exists():
            continue
        for number in range(count):
            image, mask = pictures[number % len(pictures)]
            _, split, defect, _ = image.parts[-4:]
            stem, name = f"{number:05}", image.parts[-4]
            place = root / name / split / defect / f"{stem}.{'png' if kind == 'png' else 'jpg'}"
            place.parent.mkdir(parents=True, exist_ok=True)
            if kind == "png":
                shutil.copy(image, place)
            else:
                Image.open(image).convert("RGB").save(place, quality=95)
            if mask:
                place = root / name / "ground_truth" / defect / f"{stem}_mask.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(mask, place)
    return roots


def ours(root: Path, count: int) -> tuple[float, float]:
    """The whole process into a fresh store, without digests of files from an earlier run; and in it the processors' seconds."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pipeline.yaml").write_text(PIPELINE % root)
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        env = {**os.environ, "VLMDIFF_CACHE": f"{folder}/cache"}
        subprocess.run([VLMDIFF, "run", "pipeline.yaml", "--quiet"], cwd=folder, env=env, check=True)
        seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        query = [VLMDIFF, "sql", "select count(*) from images", "--format", "csv"]
        assert subprocess.check_output(query, cwd=folder, env=env).split()[-1] == str(count).encode()
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def work(root: Path, count: int) -> tuple[float, float]:
    """What it computes, without a store."""
    lines = "".join(f"{image}\t{mask or ''}\n" for image, mask in listed(root))
    bench = ["cargo", "bench", "-q", "--profile", "dev", "--bench", "ingest"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = json.loads(subprocess.check_output(bench, cwd=HERE.parent, input=lines.encode()))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return said["seconds"], after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def peer(root: Path, count: int) -> tuple[float, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = json.loads(subprocess.check_output([sys.executable, __file__, "--loader", root]))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert said["images"] == count
    return said["seconds"], after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=5, help="rounds that count; one more comes first")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--photographs", type=Path, help="where photographs are kept between runs")
    parser.add_argument("--loader", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loader:
        return loader(arguments.loader)
    with tempfile.TemporaryDirectory() as temporary:
        folder, count = arguments.photographs or Path(temporary), arguments.images
        roots = photograph(folder.resolve(), count)
        print(f"{count} photographs of {SIDE}x{SIDE} to {SIZE}x{SIZE}, {CORES} cores; median of {arguments.n} (lowest to highest)")
        print("| files | | images/s | processor per image, with the process's start | beside the DataLoader |\n|---|---|---|---|---|")
        for kind, root in roots.items():
            times = {work: [], ours: [], peer: []}
            for _ in range(arguments.n + 1):
                for system, runs in times.items():
                    runs.append(system(root, count))
            rates = {system: sorted(count / wall for wall, _ in runs[1:]) for system, runs in times.items()}
            cpu = {system: statistics.median(cpu for _, cpu in runs[1:]) / count * 1e3 for system, runs in times.items()}
            for system, name in ((peer, "DataLoader"), (work, "vlmdiff, the work"), (ours, "vlmdiff run")):
                rate = rates[system]
                ratio = statistics.median(rate) / statistics.median(rates[peer])
                print(f"| {kind} | {name} | {statistics.median(rate):.0f} ({rate[0]:.0f} to {rate[-1]:.0f}) | {cpu[system]:.1f} ms | {ratio:.2f}x |")


if __name__ == "__main__":
    main()

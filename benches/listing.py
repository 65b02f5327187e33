#!/usr/bin/env python3
"""Times the listing of a data set of the size of Real-IAD: 30 classes, 151,050 photographs and 51,329 masks, which are the same small
picture under many names, and its JSON splits. `vlmdiff plan` lists them and compares them with an empty store.

    python3 benches/listing.py [-n 5] [--images 151050]

The first plan reads every file, the others only what the file system says about each.
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from measure import VLMDIFF, Failed, need_vlmdiff

CLASSES, VIEWS = 30, 5
# The shares of training, normal and anomalous test images in Real-IAD.
TRAIN, ANOMALOUS = 36_465 / 151_050, 51_329 / 151_050
PIPELINE = "name: listing\ntables: { images: { stage: ingest, with: { dataset: real_iad, root: %s, size: 256 } } }\n"
# A PNG of one black pixel.
PICTURE = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
                        "0000000a4944415478da6360000000020001e527defc0000000049454e44ae426082")


def generate(root: Path, images: int) -> None:
    """Writes the splits and the photographs of all classes."""
    (root / "realiad_jsons").mkdir(parents=True)
    for number in range(CLASSES):
        name, count = f"class_{number:02}", images // CLASSES
        splits = {"meta": {"prefix": f"{name}/"}, "train": [], "test": []}
        for image in range(count):
            sample, view = image // VIEWS, image % VIEWS + 1
            is_anomalous = image >= count * (1 - ANOMALOUS)
            kind = "HS" if is_anomalous else "OK"
            folder = f"{'NG/HS' if is_anomalous else 'OK'}/S{sample:04}"
            stem = f"{folder}/{name}_{sample:04}_{kind}_C{view}_20231018145253"
            files = [f"{stem}.jpg"] + [f"{stem}.png"] * is_anomalous
            (root / "realiad_512" / name / folder).mkdir(parents=True, exist_ok=True)
            for file in files:
                (root / "realiad_512" / name / file).write_bytes(PICTURE)
            item = {"category": name, "anomaly_class": kind, "image_path": files[0], "mask_path": files[1] if is_anomalous else None}
            splits["train" if image < count * TRAIN else "test"].append(item)
        (root / "realiad_jsons" / f"{name}.json").write_text(json.dumps(splits))


def plan(pipeline: Path, folder: Path) -> float:
    """Returns the seconds of a plan."""
    started = time.monotonic()
    done = subprocess.run([VLMDIFF, "plan", pipeline, "--store", folder / "store"], capture_output=True, text=True,
                          env={**os.environ, "VLMDIFF_CACHE": str(folder / "cache")})
    if done.returncode != 0:
        raise Failed(f"vlmdiff plan: {done.stderr[-2000:]}")
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=5, help="plans that are timed after the first")
    parser.add_argument("--images", type=int, default=151_050)
    options = parser.parse_args()
    need_vlmdiff()
    with tempfile.TemporaryDirectory() as folder:
        root, pipeline = Path(folder) / "Real-IAD", Path(folder) / "listing.yaml"
        generate(root, options.images)
        pipeline.write_text(PIPELINE % root)
        # Files that have just been written may change unseen within two seconds, and are read again.
        time.sleep(3)
        first = plan(pipeline, Path(folder))
        others = [plan(pipeline, Path(folder)) for _ in range(options.n)]
    print(f"| photographs | first plan | plan |\n|---|---|---|\n"
          f"| {options.images:,} | {first:.2f} s | {statistics.median(others):.2f} s ({min(others):.2f}–{max(others):.2f}) |")


if __name__ == "__main__":
    main()

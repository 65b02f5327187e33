#!/usr/bin/env python3
"""Pixel AUROC and AUPRO of anomaly maps: vlmdiff beside scikit-learn and scikit-image as the authors' evaluation uses them.

    benches/.venvs/networks/bin/python benches/metrics.py [--maps 100]

Both measure the same maps in one run, and have to agree.
"""
import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from skimage import measure
from sklearn.metrics import auc, roc_auc_score

HERE = Path(__file__).resolve().parent
SIDE, STEPS, LIMIT, BAR = 256, 200, 0.3, 100


def maps(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth maps, half of them of defects: one to three rectangles that score higher, not all of them where they are."""
    random = np.random.default_rng(0)
    spectrum = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    spectrum[0, 0] = 1
    values, masks = np.zeros((count, SIDE, SIDE)), np.zeros((count, SIDE, SIDE), np.uint8)
    for index in range(count):
        noise = np.fft.ifft2(np.fft.fft2(random.normal(size=(SIDE, SIDE))) / spectrum).real
        values[index] = 0.2 + 0.05 * noise / noise.std()
        for _ in range(random.integers(1, 4) if index % 2 else 0):
            x, y = random.integers(0, SIDE - 60, 2)
            width, height = random.integers(8, 60, 2)
            masks[index, y:y + height, x:x + width] = 1
            dx, dy = random.integers(-4, 5, 2)
            values[index, max(y + dy, 0):y + dy + height, max(x + dx, 0):x + dx + width] += random.uniform(0, 0.2)
    return values.astype(np.float16), masks


def pro(masks: np.ndarray, values: np.ndarray) -> float:
    """Each threshold over all maps, each region of each mask looked for again."""
    low, high = values.min(), values.max()
    pros, fprs = [], []
    for threshold in np.arange(low, high, (high - low) / STEPS):
        called = values > threshold
        overlaps = []
        for binary, mask in zip(called, masks):
            for region in measure.regionprops(measure.label(mask)):
                overlaps.append(binary[region.coords[:, 0], region.coords[:, 1]].sum() / region.area)
        pros.append(np.mean(overlaps))
        fprs.append(np.logical_and(masks == 0, called).sum() / (masks == 0).sum())
    pros, fprs = np.array(pros), np.array(fprs)
    pros, fprs = pros[fprs < LIMIT], fprs[fprs < LIMIT]
    return auc(fprs / fprs.max(), pros)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=100)
    count = parser.parse_args().maps
    values, masks = maps(count)
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/maps.safetensors"
        save_file({"maps": values, "masks": masks}, file)
        bench = ["cargo", "bench", "-q", "--profile", "dev", "--bench", "metrics", "--", file]
        ours = json.loads(subprocess.check_output(bench, cwd=HERE.parent, env=os.environ))
    values = values.astype(np.float64)
    started = time.monotonic()
    auroc = roc_auc_score(masks.ravel(), values.ravel())
    middle = time.monotonic()
    area = pro(masks, values)
    seconds = time.monotonic() - started
    auroc = max(auroc, 1 - auroc)
    for name, got, want in [("pixel AUROC", ours["auroc"], auroc), ("PRO", ours["pro"], area)]:
        assert abs(got - want) < 1e-9, f"{name}: {got}, not {want}"
        print(f"{name} {want:.6f} in both")
    print(f"AUPRO by the definition {ours['aupro']:.6f}")
    ratio = seconds / ours["seconds"]
    print(f"{count} maps of {SIDE}x{SIDE}: vlmdiff {ours['seconds'] * 1e3:.1f} ms, peer {seconds:.2f} s ({middle - started:.2f} s of it AUROC), "
          f"{ratio:.0f}x (bar: {BAR}x{': met' if ratio >= BAR else ''})")


if __name__ == "__main__":
    main()

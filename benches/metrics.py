#!/usr/bin/env python3
"""Times pixel AUROC and AUPRO of anomaly maps: vlmdiff beside scikit-learn and scikit-image, as the authors' evaluation uses them,
then vlmdiff alone with growing numbers of maps.

    python3 benches/metrics.py [--maps 100]

Both measure the same maps in one run, and have to agree. If scikit-learn or scikit-image is not installed, vlmdiff is measured
alone. The script starts itself with `--beside PROGRAM` by the interpreter that has both.
"""
import argparse
import json
import subprocess
import tempfile
import time

import peers
from measure import Failed, built

SIDE, STEPS, LIMIT, BAR = 256, 200, 0.3, 100


def maps(count: int):
    """Makes smooth maps. Half of them have one to three defects, which score higher in rectangles that are a little displaced."""
    import numpy as np

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


def pro(masks, values) -> float:
    """Computes PRO as the authors do: for each threshold, the regions of every mask are found again."""
    import numpy as np
    from skimage import measure
    from sklearn.metrics import auc

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


def beside(program: str, count: int) -> None:
    """Prints a line of the table."""
    import numpy as np
    from safetensors.numpy import save_file
    from sklearn.metrics import roc_auc_score

    values, masks = maps(count)
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/maps.safetensors"
        save_file({"maps": values, "masks": masks}, file)
        ours = json.loads(subprocess.check_output([program, file]))
    values = values.astype(np.float64)
    started = time.monotonic()
    auroc = roc_auc_score(masks.ravel(), values.ravel())
    area = pro(masks, values)
    seconds = time.monotonic() - started
    for name, got, want in [("pixel AUROC", ours["auroc"], max(auroc, 1 - auroc)), ("PRO", ours["pro"], area)]:
        if abs(got - want) > 1e-9:
            raise Failed(f"{name}: vlmdiff computes {got}, the peer {want}")
    ratio = seconds / ours["seconds"]
    print(f"| {count} | {ours['seconds'] * 1e3:.1f} ms | {seconds:.2f} s | {ratio:.0f}x | {BAR}x: {'met' if ratio >= BAR else 'missed'} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=100)
    parser.add_argument("--beside", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.beside:
        return beside(arguments.beside, arguments.maps)
    missing, program = peers.say_missing("networks"), built("metrics")
    print(f"| maps of {SIDE}x{SIDE} | vlmdiff | scikit-learn, scikit-image | faster | bar |\n|---|---|---|---|---|", flush=True)
    if missing:
        print(f"| {arguments.maps} | see the next table | not installed | | |")
    else:
        again = [peers.program("networks"), __file__, "--maps", str(arguments.maps), "--beside", program]
        if code := subprocess.run(again).returncode:
            raise Failed(f"The comparison of metrics ended with exit code {code}; its message is above.")
    print(flush=True)
    if code := subprocess.run([program]).returncode:
        raise Failed(f"{program} ended with exit code {code}; its message is above.")


if __name__ == "__main__":
    main()

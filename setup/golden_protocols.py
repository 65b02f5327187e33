#!/usr/bin/env python3
"""Makes data/golden/protocols/expected.json: small maps, and the metrics that published programs compute of them.

    python3 setup/golden_protocols.py ANOMALIB_1 ANOMALIB_2 ADEVAL MVTEC

Each argument is a folder with a program: anomalib 1.2 and 2.7 and ADEval 1.1 as `pip install --no-deps --target` leaves them, and the
evaluation scripts that MVTec publishes beside MVTec AD. torch, torchmetrics, kornia, OpenCV, matplotlib and scipy are needed. Values of
maps are whole numbers of 1024ths, which half precision holds exactly.
"""

import importlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch

TARGET = Path(__file__).resolve().parent.parent / "data/golden/protocols/expected.json"
HEIGHT, WIDTH = 20, 24


def smooth(noise):
    """Averages over windows of 3x3, whose edges are repeated."""
    padded = np.pad(noise, 1, mode="edge")
    return sum(padded[y:y + HEIGHT, x:x + WIDTH] for y in range(3) for x in range(3)) / 9


def case(seed, defects, levels, highest):
    """Makes maps and masks, [N, H, W]; `defects` are lists of (y, x, height, width, strength)."""
    random = np.random.default_rng(seed)
    maps, masks = [], []
    for regions in defects:
        values, mask = smooth(random.random((HEIGHT, WIDTH))), np.zeros((HEIGHT, WIDTH), np.uint8)
        for y, x, height, width, strength in regions:
            mask[y:y + height, x:x + width] = 1
            values[y:y + height, x:x + width] += strength * random.random((height, width))
        maps.append(values)
        masks.append(mask)
    maps = np.stack(maps)
    maps = (maps - maps.min()) / (maps.max() - maps.min())
    return np.round(maps * levels) * round(1024 * highest) // levels, np.stack(masks)


NONE = []
CASES = {
    # Two of the regions touch at a corner, and one is a pixel. (anomalib takes a mask of a whole image for background.)
    "fine": case(1, [NONE, [(2, 3, 6, 5, .7)], NONE, [(5, 5, 3, 3, .5), (8, 8, 4, 2, .4), (15, 20, 1, 1, .9)],
                     [(0, 0, HEIGHT, WIDTH - 1, .3)], NONE], 1024, 1),
    "ties": case(2, [NONE, [(0, 0, 9, 4, .5)], [(12, 10, 5, 12, .3), (1, 15, 2, 9, .8)], NONE], 16, 1),
    "weak": case(3, [NONE, [(3, 3, 10, 10, .1)], [(12, 10, 5, 12, .05)], NONE], 1024, 1),
    # One normal pixel is far above all others, which widens the strips of ADEval.
    "spike": case(4, [[(4, 4, 1, 1, 3.)], [(3, 3, 10, 10, .6)], [(12, 10, 5, 12, .3)], NONE], 1024, 1),
    "no_normal_image": case(5, [[(3, 3, 10, 10, .5)], [(12, 10, 5, 12, .3)]], 256, 1),
    # Above 1, anomalib 1 takes scores for logits.
    "logits": case(7, [NONE, [(3, 3, 10, 10, .5)], [(12, 10, 5, 12, .3)], NONE], 1024, 2),
    "no_defect": case(6, [NONE, NONE], 1024, 1),
}
CASES["spike"][1][0] = 0


def load(folder, modules):
    """Imports modules of a package without what its `__init__` imports, which may need much more."""
    package = modules[0].split(".")[0]
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]
    folders = {package, *(".".join(module.split(".")[:-1]) for module in modules)}
    for name in sorted(folders | ({"anomalib.utils"} if package == "anomalib" else set())):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(Path(folder, *name.split(".")))]
    return [importlib.import_module(module) for module in modules]


def anomalib(classes, maps, masks, scores, labels):
    from torchmetrics.classification import BinaryAUROC
    aupro, aupr, f1 = classes

    def of(kind, predictions, targets):
        metric = kind()
        metric.update(torch.tensor(predictions, dtype=torch.float32), torch.tensor(targets, dtype=torch.int64))
        return float(metric.compute())

    found = {
        "image_auroc": of(BinaryAUROC, scores, labels), "image_ap": of(aupr, scores, labels),
        "image_f1_max": of(f1, scores, labels),
        "pixel_auroc": of(BinaryAUROC, maps.ravel(), masks.ravel()), "pixel_ap": of(aupr, maps.ravel(), masks.ravel()),
        "pixel_f1_max": of(f1, maps.ravel(), masks.ravel()),
    }
    found["aupro"] = of(aupro, maps, masks)
    return found


def adeval(folder, maps, masks, scores, labels):
    np.trapz = np.trapezoid  # its name until numpy 2
    [program] = load(folder, ["adeval.mem_effic"])
    image_auroc, image_ap = program.auroc_and_aupr(scores.astype(np.float32), labels)
    pixel_auroc, pixel_ap, aupro = program.auroc_aupr_aupro(maps.astype(np.float32), masks)
    return {"image_auroc": image_auroc, "image_ap": image_ap, "pixel_auroc": pixel_auroc, "pixel_ap": pixel_ap,
            "aupro": aupro}


def mvtec(folder, maps, masks):
    """Returns the metrics of MVTec's scripts: of images by the largest value of their map, and AU-PRO."""
    sys.path.insert(0, folder)
    from generic_util import trapezoid
    from pro_curve_util import compute_pro
    from roc_curve_util import compute_classification_roc
    labels = [int(mask.any()) for mask in masks]
    found = {}
    if 0 < sum(labels) < len(labels):
        found["image_auroc"] = trapezoid(*compute_classification_roc(list(maps), np.max, labels))
    fprs, pros = compute_pro(list(maps), list(masks))
    found["aupro"] = trapezoid(fprs, pros, x_max=.3) / .3
    found["aupro_0.05"] = trapezoid(fprs, pros, x_max=.05) / .05
    return found


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    anomalib_1, anomalib_2, adeval_folder, mvtec_folder = sys.argv[1:]
    sys.path.insert(0, anomalib_2)
    from anomalib.metrics.aupr import _AUPR
    from anomalib.metrics.aupro import _AUPRO
    from anomalib.metrics.f1_score import _F1Max
    sys.path.remove(anomalib_2)
    aupro, aupr, f1_max = load(anomalib_1, [f"anomalib.metrics.{name}" for name in ("aupro", "aupr", "f1_max")])
    versions = {"anomalib_1": (aupro.AUPRO, aupr.AUPR, f1_max.F1Max), "anomalib_2": (_AUPRO, _AUPR, _F1Max)}
    cases = {}
    for name, (values, masks) in CASES.items():
        maps, labels = values / 1024, masks.any(axis=(1, 2)).astype(int)
        scores = maps.max(axis=(1, 2))
        expected, of_images = {}, 0 < labels.sum() < len(labels)
        if masks.any():
            expected = {
                **{version: anomalib(classes, maps, masks, scores, labels) for version, classes in versions.items()},
                "adeval": adeval(adeval_folder, maps, masks, scores, labels),
                "mvtec": mvtec(mvtec_folder, maps, masks),
            }
        # Metrics that need both kinds of images are numbers in some programs and not in others where one is missing.
        for found in expected.values():
            for metric in [metric for metric in found if metric.startswith("image") and not of_images]:
                del found[metric]
        # The pixels above a threshold from normal maps, here those of the first image, for MVTec AD 2.
        threshold = maps[0].mean() + 3 * maps[0].std()
        called, found = maps > threshold, 2 * ((maps > threshold) & (masks > 0)).sum()
        expected["mvtec_ad_2"] = {"threshold": threshold, "pixel_f1": found / max(called.sum() + masks.sum(), 1)}
        cases[name] = {"width": WIDTH, "maps": values.astype(int).reshape(len(maps), -1).tolist(),
                       "masks": ["".join(map(str, mask.ravel())) for mask in masks], "expected": expected}
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(case, separators=(',', ':'))}"
                                         for name, case in cases.items()) + "\n}\n")


if __name__ == "__main__":
    main()

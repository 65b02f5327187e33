#!/usr/bin/env python3
"""Times PatchCore from photographs to anomaly maps: vlmdiff beside anomalib, with the same network, settings and pictures.

    python3 benches/inspection.py [--train 60] [--test 60] [--more 240] [--rounds 3]

Each side is a whole process that fits a coreset of a tenth of the patches and scores the test pictures; what a picture takes is the
difference of two such processes, one of which scores more pictures. "Network alone" is the same difference of vlmdiff's stage `extract`
on the stored pictures of the test, with one patch kept of each: the bar is 85 % of its pictures per second. Pictures are generated, of
224x224 pixels. The network is EfficientNet-Lite0, of which `python3 setup/fetch.py weights` fetches the weights. If anomalib is not installed, vlmdiff is measured alone.
"""
import argparse
import json
import statistics
import tempfile
from pathlib import Path

import peers
from measure import VLMDIFF, Run, System, call, need_vlmdiff

WEIGHTS = Path.home() / ".cache/vlmdiff/efficientnet-lite0-57934424.pth"
CLASS, SIDE, THREADS = "gear", 224, 2

PIPELINE = """name: inspection
tables:
  images: {{ stage: ingest, with: {{ dataset: folder, root: {root}, size: {side} }} }}
  features:
    stage: extract
    from: [images]
    where: split = 'train'
    with: {{ extractor: efficientnet-lite0, layers: [8, 16] }}
  network:
    stage: extract
    from: [images]
    where: split = 'test'
    with: {{ extractor: efficientnet-lite0, layers: [8, 16], keep: 1 }}
  bank: {{ stage: fit, from: [features], with: {{ method: {{ patchcore: {{ protocol: anomalib, ratio: 0.1 }} }} }} }}
  anomaly_maps:
    stage: detect
    from: [images, bank]
    where: split = 'test'
    with: {{ upsample: nearest, sigma: 4, border: reflect }}
  metrics: {{ stage: evaluate, from: [images, anomaly_maps], with: {{ protocol: exact }} }}
"""


def anomalib(root: Path, output: Path) -> None:
    """Fits and scores; writes both AUROCs."""
    import warnings

    import numpy as np
    import timm
    import torch
    from anomalib.data import Folder
    from anomalib.engine import Engine
    from anomalib.models import Patchcore
    from anomalib.pre_processing import PreProcessor
    from sklearn.metrics import roc_auc_score
    from torchvision.transforms.v2 import Normalize

    warnings.filterwarnings("ignore")
    torch.set_num_threads(THREADS)
    # The network was trained on (x - 127) / 128.
    prepare = PreProcessor(transform=Normalize(mean=[127 / 255] * 3, std=[128 / 255] * 3))
    model = Patchcore(backbone="tf_efficientnet_lite0", layers=["blocks.2", "blocks.4"], pre_trained=False, coreset_sampling_ratio=0.1,
                      num_neighbors=9, pre_processor=prepare, post_processor=False, evaluator=False, visualizer=False)
    full = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    published = torch.load(WEIGHTS, map_location="cpu", weights_only=True)
    full.load_state_dict(dict(zip(full.state_dict(), published.values())))  # both list the same tensors in one order
    taken = model.model.feature_extractor.feature_extractor
    taken.load_state_dict({name: value for name, value in full.state_dict().items() if name in taken.state_dict()})

    folder = root / CLASS
    defects = sorted(path.name for path in (folder / "test").iterdir() if path.name != "good")
    data = Folder(name=CLASS, root=folder, normal_dir="train/good", normal_test_dir="test/good", abnormal_dir=[f"test/{d}" for d in defects],
                  mask_dir=[f"ground_truth/{d}" for d in defects], train_batch_size=32, eval_batch_size=32, num_workers=THREADS)
    with tempfile.TemporaryDirectory() as results:
        # One batch is validated, after which the model is fitted.
        engine = Engine(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, limit_val_batches=1, default_root_dir=results)
        engine.fit(model=model, datamodule=data)
        batches = engine.predict(model=model, dataloaders=data.test_dataloader())
    join = lambda name: np.concatenate([getattr(batch, name).numpy() for batch in batches])
    masks, labels = join("gt_mask").ravel() > 0, join("gt_label")
    aurocs = [roc_auc_score(labels, join("pred_score").ravel()), roc_auc_score(masks, join("anomaly_map").ravel())]
    output.write_text(json.dumps(aurocs))


def ours(folder: Path) -> list[float]:
    query = "select image_auroc, pixel_auroc from metrics where class = 'mean'"
    call([VLMDIFF, "run", folder / "pipeline.yaml", "--store", folder / "store", "--target", "metrics", "--quiet"])
    row = json.loads(call([VLMDIFF, "sql", query, "--store", folder / "store", "--format", "json"]).splitlines()[0])
    return [row["image_auroc"], row["pixel_auroc"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=60, help="normal pictures to fit on")
    parser.add_argument("--test", type=int, default=60, help="pictures to score")
    parser.add_argument("--more", type=int, default=240, help="pictures that the second process scores besides")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return anomalib(*options.child)
    need_vlmdiff()
    beside = not peers.say_missing("anomalib")
    with tempfile.TemporaryDirectory() as temporary:
        sizes = {}
        for test in (options.test, options.test + options.more):
            folder = Path(temporary) / str(test)
            # Half of the test pictures are normal, and six kinds of defects share the others.
            call([VLMDIFF, "synth", folder / "products", "--size", SIDE, "--classes", CLASS, "--train", options.train,
                  "--test-good", test // 2, "--test-per-defect", test // 12, "--seed", 3])
            (folder / "pipeline.yaml").write_text(PIPELINE.format(root=folder / "products", side=SIDE))
            sizes[test // 2 + test // 12 * 6] = folder
        runs: dict[tuple[str, int], list[Run]] = {}
        for round in range(options.rounds):
            for test, folder in sizes.items():
                run = lambda target: [VLMDIFF, "run", "pipeline.yaml", "--store", f"store-{round}", "--target", target, "--quiet"]
                child = [peers.program("anomalib"), Path(__file__).resolve(), "--child", folder / "products", folder / "aurocs.json"]
                # The first run stores the pictures that the second one reads.
                sides = [("vlmdiff", run("anomaly_maps")), ("network", run("network")), ("anomalib", child)]
                for name, command in sides[:2 + beside]:
                    # A failure of either side ends the bench.
                    system = System("vlmdiff", folder, command, env={"OMP_NUM_THREADS": str(THREADS)})
                    runs.setdefault((name, test), []).append(system.run(round))
        median = lambda name, test, what: statistics.median(getattr(run, what) for run in runs[name, test])
        few, many = sizes
        rate = lambda name: (many - few) / (median(name, many, "wall") - median(name, few, "wall"))
        print(f"PatchCore on {options.train} pictures of {SIDE}x{SIDE}, {THREADS} threads\n")
        print(f"| | {few} scored | {many} scored | pictures/s | network alone, share of it | memory | image AUROC | pixel AUROC |\n|---|---|---|---|---|---|---|---|")
        for name in ("vlmdiff", "anomalib")[:1 + beside]:
            walls = [median(name, test, "wall") for test in sizes]
            image, pixel = ours(sizes[many]) if name == "vlmdiff" else json.loads((sizes[many] / "aurocs.json").read_text())
            alone = f"{rate('network'):.1f}, {100 * rate(name) / rate('network'):.0f} %"
            print(f"| {name} | {walls[0]:.1f} s | {walls[1]:.1f} s | {rate(name):.1f} | {alone} | {median(name, many, 'peak'):.0f} MiB | {100 * image:.2f} | {100 * pixel:.2f} |")


if __name__ == "__main__":
    main()

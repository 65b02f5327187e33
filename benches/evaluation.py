#!/usr/bin/env python3
"""Times `evaluate` over stored anomaly maps: every protocol in one pass, with intervals from 1,000 resamples.

    python3 benches/evaluation.py [--maps 1000,10000] [--threads 2] [--alike 1] [--store FOLDER]

Maps of 256x256 of 30 classes, a third of each with defects, are generated into a store first, which is not timed; 151,050, as many
images as Real-IAD has, take 15 GB there, and less with `--alike 8`, by which eight images that are stored one after
another have the same map and mask. The time is that of a whole process that reads them and publishes the metrics. The figures show how
cost and memory grow. pyarrow and numpy are needed.
"""
import argparse
import tempfile
from pathlib import Path

from measure import VLMDIFF, System, call, need_vlmdiff

PROTOCOLS = "exact, reference, ader, mvtec, mvtec_ad_2, anomalib_1, anomalib_2, adeval"
MAKER = '''import functools
import sys
import numpy as np
import pyarrow as pa

SIDE, BASES = 256, 32
random = np.random.default_rng(0)
spectrum = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
spectrum[0, 0] = 1
noise = [np.fft.ifft2(np.fft.fft2(random.normal(size=(SIDE, SIDE))) / spectrum).real for _ in range(BASES)]
bases = [0.2 + 0.05 * base / base.std() for base in noise]

def is_anomalous(number):
    return number // 30 % 3 == 0

@functools.lru_cache(maxsize=1)
def image(number):
    """Makes a map, which is another one moved, and its mask."""
    random = np.random.default_rng(number)
    values = np.roll(bases[number % BASES], tuple(random.integers(0, SIDE, 2)), (0, 1)) * random.uniform(0.9, 1.1)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(random.integers(1, 4) if is_anomalous(number) else 0):
        y, x = random.integers(0, SIDE - 40, 2)
        height, width = random.integers(4, 40, 2)
        mask[y:y + height, x:x + width] = 255
        values[y:y + height, x:x + width] += random.uniform(0, 0.2)
    return values.astype(np.float16).ravel(), mask.ravel()

columns = {"map": pa.float16(), "mask": pa.uint8()}
name, alike = sys.argv[1], int(sys.argv[2])
item = columns[name]
fields = [("image_id", pa.string()), (name, pa.list_(item, SIDE * SIDE))]
fields += [("score", pa.float32())] if name == "map" else [("class", pa.string()), ("label", pa.bool_()), ("split", pa.string())]
schema = pa.schema(fields)
rows = pa.ipc.open_stream(sys.stdin.buffer)
with pa.ipc.new_stream(sys.stdout.buffer, schema) as answers:
    for batch in rows:
        ids = batch["image_id"]
        numbers = [int(text.rpartition("/")[2]) for text in ids.to_pylist()]
        # The numbers of a class are 30 apart.
        numbers = [number // (30 * alike) * 30 + number % 30 for number in numbers]
        made = [image(number)[0 if name == "map" else 1] for number in numbers]
        values = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(made), item), SIDE * SIDE)
        more = {"score": pa.array([float(values.max()) for values in made], pa.float32())} if name == "map" else {
            "class": [text.rpartition("/")[0] for text in ids.to_pylist()],
            "label": [is_anomalous(number) for number in numbers],
            # Some normal images give the threshold of MVTec AD 2.
            "split": ["calibration" if number // 30 % 30 == 1 else "test" for number in numbers],
        }
        answers.write_batch(pa.RecordBatch.from_pydict({"image_id": ids, name: values, **more}, schema))
        sys.stdout.flush()
'''
PIPELINE = """name: evaluation
tables:
  ids: {{ stage: read, with: {{ path: {folder}/ids.csv, id: image_id }} }}
  images:
    stage: command
    from: [ids]
    with: {{ run: {python} {folder}/maker.py mask {alike}, output: {{ mask: "uint8[256,256]", class: utf8, label: bool, split: utf8 }} }}
  anomaly_maps:
    stage: command
    from: [ids]
    with: {{ run: {python} {folder}/maker.py map {alike}, output: {{ map: "float16[256,256]", score: float32 }} }}
  metrics: {{ stage: evaluate, from: [images, anomaly_maps], with: {{ protocol: [{protocols}], bootstrap: {{ resamples: 1000 }} }} }}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", default="1000,10000", help="numbers of maps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--alike", type=int, default=1, help="images of a class that share a map and a mask")
    parser.add_argument("--python", default="python3", help="a Python with pyarrow and numpy")
    parser.add_argument("--store", help="the folder of the stores; by default a temporary one")
    arguments = parser.parse_args()
    need_vlmdiff()
    print("| maps of 256x256 | time | each | peak of the process |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for maps in map(int, arguments.maps.split(",")):
            folder = Path(arguments.store or temporary) / str(maps)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "maker.py").write_text(MAKER)
            ids = "".join(f"class{number % 30:02}/{number},{number}\n" for number in range(maps))
            (folder / "ids.csv").write_text(f"image_id,number\n{ids}")
            text = PIPELINE.format(folder=folder.resolve(), python=arguments.python, alike=arguments.alike, protocols=PROTOCOLS)
            (folder / "pipeline.yaml").write_text(text)
            run = [VLMDIFF, "run", folder / "pipeline.yaml", "--store", folder / "store", "--quiet"]
            call([*run, "--target", "images", "--target", "anomaly_maps"])
            run += ["--threads", arguments.threads, "--set"]
            # Another seed computes the metrics again and nothing else.
            system = System("vlmdiff", folder, lambda round: [*run, f"metrics.bootstrap.seed={round}"])
            measured = system.attempt(1)
            if measured is None:
                raise SystemExit(f"`evaluate` failed on {maps} maps")
            each = measured.wall * 1e3 / maps
            print(f"| {maps:,} | {measured.wall:.1f} s | {each:.2f} ms | {measured.peak:.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()

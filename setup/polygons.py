#!/usr/bin/env python3
"""Makes data/golden/drawing/polygons.jsonl: polygons, and the masks that OpenCV 4 fills them to.

    pip install opencv-python-headless==4.10.0.84
    python3 setup/polygons.py

A line is a polygon on a picture of a size (width, height), and its mask as lengths of runs down one column after the other,
the first of which is outside. A third of the polygons stays within the picture, a third ends on its border as those of COCO
do, and a third goes beyond it.
"""

import itertools
import json
import random
from pathlib import Path

import cv2
import numpy

TARGET = Path(__file__).resolve().parent.parent / "data/golden/drawing/polygons.jsonl"
POLYGONS = 300
BEYOND = [0, 1, 8]


def runs(mask):
    pixels = mask.T.flatten().tolist()
    lengths = [(inside, sum(1 for _ in run)) for inside, run in itertools.groupby(pixels, bool)]
    return [0] * (bool(lengths[0][0])) + [length for _, length in lengths]


def main():
    generator = random.Random(0)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    with TARGET.open("w") as file:
        for number in range(POLYGONS):
            width, height = generator.randint(1, 30), generator.randint(1, 30)
            beyond = BEYOND[number % len(BEYOND)]
            low = -beyond if beyond > 1 else 0
            corners = [[generator.randint(low, side - 1 + beyond) for side in (width, height)]
                       for _ in range(generator.randint(1, 9))]
            mask = numpy.zeros((height, width), numpy.uint8)
            cv2.fillPoly(mask, [numpy.array(corners, numpy.int32)], 255)
            line = {"size": [width, height], "polygon": corners, "runs": runs(mask)}
            file.write(json.dumps(line, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Makes data/golden, the compact golden set of this repository, from a full one.

    python3 setup/golden.py FULL_SET

A full set holds tiny instances of every published architecture with the outputs of its reference implementation, and
`VLMDIFF_GOLDEN=FULL_SET make test` compares with it directly. The compact set has each network once: weights that a formula
reproduces are left out (tests/golden/weights.rs), and so are second layouts of the same weights and the largest outputs.
"""

import json
import shutil
import struct
import sys
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "data/golden"

# Folders that are copied, each without the files that are named.
FOLDERS = {
    "models/schedules": [],
    "models/unet": [],
    "models/controlnet": [],
    "models/dinov2": [],
    "models/resnet50": [],
    "models/pos_embed": [],
    "models/training": [],
    "models/metrics": [],
    "models/pickles": [],
    "models/manifests": ["summary.json"],
    "models/qwen2_tokenizer": [],
    "models/internlm2_tokenizer": [],
    "models/internvl_prompts": [],
    "models/internvl_tiling": ["img0.png", "img1.png", "img2.png"],
    "models/internvl2_qwen2": [],
    "models/internvl2_internlm2": [],
    "models/internvl_hf": [],
    "models/blip2_opt": [],
    "models/blip2_t5": [],
    "models/deepseek_vl": [],
    "methods/patchcore": [],
    "methods/knn_dinov2": [],
    "methods/rd": [],
    "methods/diad": [],
    "reference": ["weights_i8.safetensors", "ae_loss_weights_i8.safetensors", "dino_weights_i8.safetensors",
                  "internvl_tiling.json"],
}
# Files that are copied from folders of which the others are left out.
FILES = ["methods/manifests/ader_rd_wide_resnet50_2.json.gz"]
# Tensors that are left out because other outputs imply them.
TENSORS = {
    "reference/sampling.safetensors": ["empty.samples", "empty.reconstruction", "caption.samples"],
    "reference/autoencoder.safetensors": ["decoded_raw"],
    "models/internvl_tiling/expected.safetensors": [
        f"img{image}.pixel_values[{tile}]" for image in range(3) for tile in (0, -1)],
    "methods/diad/expected.safetensors": ["samples", "features_input.0", "features_sample.0", "map_before_smoothing"],
    "methods/rd/expected.safetensors": [
        "map.final", "map.level.0", "map.level.1", "map.level.2",
        *(f"train.{of}.{name}.0.weight" for of in ("grad", "param_after1")
          for name in ("mff_oce.bn_layer.0.downsample", "net_s.layer2.0.upsample"))],
}


def copy(source, target, dropped):
    """Copies a safetensors file without some of its tensors."""
    data = source.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header, body = json.loads(data[8:8 + length]), data[8 + length:]
    kept, blocks, offset = {}, [], 0
    for name, entry in sorted(header.items(), key=lambda item: item[1].get("data_offsets", [0])[0]):
        if name == "__metadata__" or name in dropped:
            continue
        start, end = entry["data_offsets"]
        kept[name] = {**entry, "data_offsets": [offset, offset + end - start]}
        blocks.append(body[start:end])
        offset += end - start
    text = json.dumps(kept, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    target.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blocks))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    full = Path(sys.argv[1])
    for folder, left_out in FOLDERS.items():
        for source in sorted((full / folder).rglob("*")):
            name = source.relative_to(full).as_posix()
            if source.is_dir() or source.name in left_out or source.name == "README.md":
                continue
            target = TARGET / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name in TENSORS:
                copy(source, target, TENSORS[name])
            else:
                shutil.copyfile(source, target)
    for name in FILES:
        target = TARGET / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(full / name, target)


if __name__ == "__main__":
    main()

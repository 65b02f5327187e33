#!/usr/bin/env python3
"""Makes data/golden/methods/anomalib_dino: a tiny transformer, and what anomalib's AnomalyDINO makes of pictures by it.

    python3 setup/golden_anomaly_dino.py

anomalib 2.7.0, timm 1.0.31, torch 2.11 and safetensors are needed. The network is timm's with random weights, under names that DINOv2's
files have too. The pictures are of another size than its table of positions, so that the table is resized.
"""

import json
from pathlib import Path
from unittest import mock

import timm
import torch
from anomalib.models.image.anomaly_dino.torch_model import AnomalyDINOModel
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

TARGET = Path(__file__).resolve().parent.parent / "data/golden/methods/anomalib_dino"
SIZES = {"width": 16, "depth": 2, "heads": 2, "patch": 8, "pretrain_size": 24}
# The pictures are cut to whole patches, in the middle: 4x5 of them.
PICTURES = {"train": (3, 32, 40), "test": (2, 32, 40), "uneven": (1, 37, 45)}
NEIGHBORS = [1, 3]


def network():
    torch.manual_seed(31)
    model = VisionTransformer(
        img_size=SIZES["pretrain_size"], patch_size=SIZES["patch"], embed_dim=SIZES["width"], depth=SIZES["depth"],
        num_heads=SIZES["heads"], init_values=1.0, num_classes=0, dynamic_img_size=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (1.0 if name in ("cls_token", "pos_embed") else 0.2))
            if "norm" in name and name.endswith("weight") or name.endswith("gamma"):
                parameter.add_(1.0)
    return model.eval()


def pictures(count, height, width):
    """Smooth pictures of 8 bits, as a grid of random colours that is enlarged."""
    coarse = torch.rand(count, 3, 5, 6)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear") + torch.rand(count, 3, height, width) / 4
    return (fine / 1.25 * 255).round().to(torch.uint8)


def anomaly_dino(backbone, neighbors):
    with mock.patch.object(timm, "create_model", lambda *_, **__: backbone), \
            mock.patch.object(AnomalyDINOModel, "_last_block_index", staticmethod(lambda _: SIZES["depth"] - 1)):
        return AnomalyDINOModel(num_neighbours=neighbors)


def normalised(images):
    """(x / 255 - 0.5) · 4, a normalisation as good as any."""
    return (images.float() / 255 - 0.5) * 4


def main():
    torch.set_num_threads(1)
    backbone = network()
    inputs = {name: pictures(*shape) for name, shape in PICTURES.items()}
    # A spot in the second test picture.
    inputs["test"][1, :, 10:20, 14:26] = torch.tensor([250, 10, 10], dtype=torch.uint8).view(3, 1, 1)
    expected = {}
    with torch.no_grad():
        for neighbors in NEIGHBORS:
            model = anomaly_dino(backbone, neighbors)
            model.train()
            for image in inputs["train"].split(1):
                model(normalised(image))
            model.fit()
            model.eval()
            expected["bank"] = model.memory_bank
            for name in ("test", "uneven"):
                found = model(normalised(inputs[name]))
                expected[f"k{neighbors}.{name}.map"] = found.anomaly_map
                expected[f"k{neighbors}.{name}.score"] = found.pred_score
    TARGET.mkdir(parents=True, exist_ok=True)
    contiguous = lambda tensors: {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    save_file(contiguous(backbone.state_dict()), TARGET / "model.safetensors")
    save_file(contiguous(inputs), TARGET / "inputs.safetensors")
    save_file(contiguous(expected), TARGET / "expected.safetensors")
    (TARGET / "config.json").write_text(json.dumps({**SIZES, "neighbors": NEIGHBORS}, indent=1) + "\n")


if __name__ == "__main__":
    main()

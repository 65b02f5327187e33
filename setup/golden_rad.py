#!/usr/bin/env python3
"""Makes data/golden/methods/rad: features of images, and the scores that the authors' program of RAD makes of them.

    git clone https://github.com/longkukuhi/RAD && git -C RAD checkout 59847f4
    python3 setup/golden_rad.py RAD

torch 2.11, numpy and safetensors are needed. A network is not: the features are random numbers, and the authors' function is given
a network that returns them. Its packages for data, pictures and metrics are replaced by nothing, and the metrics by a place where the
scores are kept. Images are looked up by class tokens there and by means of patches here, so the tokens are these means.
"""

import json
import sys
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

TARGET = Path(__file__).resolve().parent.parent / "data/golden/methods/rad"
# The hundredth of the patches that makes an image's score is two of them.
SIDE, LAYERS, CHANNELS = 15, 3, 8
GOOD, TEST = 6, 2
# The number of images that are looked up, and the radius; without a radius all places are compared.
RUNS = {"k1_r1": (1, 1), "k2_r0": (2, 0), "k2_r1": (2, 1), "k2_r2": (2, 2), "k2_all": (2, None), "k6_r1": (6, 1)}


def features():
    """Features [N, L, P, C] of good images, and of test images. Each of these resembles two good ones in the last layer, and others
    in the layers before."""
    torch.manual_seed(17)
    styles = torch.randn(GOOD // 2, LAYERS, 1, CHANNELS)
    places = torch.randn(LAYERS, SIDE * SIDE, CHANNELS)

    def image(style, last):
        style = torch.cat([styles[style, :-1], styles[last, -1:]])
        return style + places + torch.randn_like(places) / 2

    good = torch.stack([image(number % len(styles), number // 2) for number in range(GOOD)])
    test = torch.stack([image(number, number) for number in range(TEST)])
    # A spot with another texture.
    test.view(TEST, LAYERS, SIDE, SIDE, CHANNELS)[1, :, 3:6, 8:11] = torch.randn(LAYERS, 3, 3, CHANNELS)
    # Banks are kept in half precision.
    return good.half(), test.half()


def authors_program(folder):
    sys.path.insert(0, str(folder))
    for name in ("dataset", "dinov3", "dinov3.hub", "dinov3.hub.backbones", "utils", "sklearn", "sklearn.metrics", "torchvision",
                 "torchvision.datasets", "PIL", "matplotlib", "matplotlib.pyplot"):
        sys.modules[name] = mock.MagicMock()
    import rad_mvtec_visa_3dadam
    return rad_mvtec_visa_3dadam


class Network:
    """A network whose images are numbers of features."""

    def __init__(self, features):
        self.features = features.float()

    def eval(self):
        return self

    def get_intermediate_layers(self, images, **_):
        patches = [self.features[images.long(), layer] for layer in range(LAYERS)]
        return [(layer, layer.mean(1)) for layer in patches]


def scores(program, good, test, images, radius):
    """Returns the scores of patches [N, P] and of images [N]. The map is asked for at the size of the grid of patches and is not
    blurred, so that it is the scores of the patches."""
    banks = Network(good).get_intermediate_layers(torch.arange(GOOD))
    label = torch.zeros(1)
    rows = [(torch.tensor([number]), torch.zeros(1, 1, SIDE, SIDE), label, [""]) for number in range(TEST)]
    kept = []
    program.get_gaussian_kernel = lambda **_: torch.nn.Identity()
    program.roc_auc_score = lambda _, found: kept.append(torch.from_numpy(found.copy()))
    program.eval_patch_knn_multilayer_cluster(
        Network(test), list(range(LAYERS)), [token for _, token in banks], [patches for patches, _ in banks], rows, "cpu",
        k_image=images, resize_mask=SIDE, max_ratio=0.01, use_positional_bank=radius is not None, pos_radius=radius or 0)
    of_patches, of_images = kept
    return of_patches.view(TEST, SIDE * SIDE), of_images


def main():
    torch.set_num_threads(1)
    good, test = features()
    program = authors_program(Path(sys.argv[1]).resolve())
    expected = {}
    for name, (images, radius) in RUNS.items():
        expected[f"{name}.patches"], expected[f"{name}.images"] = scores(program, good, test, images, radius)
    TARGET.mkdir(parents=True, exist_ok=True)
    save_file({"good": good, "test": test}, TARGET / "inputs.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, TARGET / "expected.safetensors")
    runs = {name: {"images": images, "radius": radius} for name, (images, radius) in RUNS.items()}
    (TARGET / "config.json").write_text(json.dumps({"side": SIDE, "layers": LAYERS, "channels": CHANNELS, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()

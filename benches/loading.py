#!/usr/bin/env python3
"""Measures time and peak memory of loading weights into a model, by vlmdiff and by Python on the same files.

    python3 benches/loading.py [--megabytes 1024] [--rounds 5]

Every load is a process of its own, with a warm page cache, in interleaved rounds. The peak counts from before the model is made,
so the model itself is 1.0 times the file. If PyTorch is not installed, vlmdiff is measured alone, on the one file that is written
without PyTorch.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time

import peers
from measure import built, call


def status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def write(path, megabytes):
    """Writes tensors of 16 MiB as safetensors: the length of the header, the header, and the numbers."""
    size = 16 << 20
    header = json.dumps({f"blocks.{i}.weight": {"dtype": "F32", "shape": [1024, 4096], "data_offsets": [i * size, (i + 1) * size]}
                         for i in range(megabytes // 16)}).encode()
    # Every fourth byte has most bits of the exponent; 63 makes the numbers about 1.
    numbers = bytearray(os.urandom(size))
    numbers[3::4] = bytes([63]) * (size // 4)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(megabytes // 16):
            file.write(numbers)


def convert(path):
    """Writes the same tensors in the current and in the legacy format of torch.save."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(path)
    torch.save({"state_dict": tensors, "epoch": 1}, path.with_name("weights.ckpt"))
    torch.save(tensors, path.with_name("legacy.pth"), _use_new_zipfile_serialization=False)


def child(path):
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(2)
    before = status("VmRSS")
    blocks = path.stat().st_size // (16 << 20)
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList(torch.nn.Linear(4096, 1024, bias=False, device="meta") for _ in range(blocks))
    model.to_empty(device="cpu")
    with torch.no_grad():
        [parameter.zero_() for parameter in model.parameters()]
    start = time.perf_counter()
    if path.suffix == ".safetensors":
        weights = load_file(path)
    else:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        weights = weights.get("state_dict", weights)
    model.load_state_dict(weights)
    print(json.dumps({"seconds": time.perf_counter() - start, "peak": status("VmHWM") - before}))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments.add_argument("--convert", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments.add_argument("--megabytes", type=int, default=1024, help="the size of a file, a multiple of 16")
    arguments.add_argument("--rounds", type=int, default=5)
    given = arguments.parse_args()
    if given.child:
        return child(given.child)
    if given.convert:
        return convert(given.convert)
    missing, python = peers.say_missing("networks"), [peers.program("networks"), __file__]
    commands = {"vlmdiff": [built("loading")], "Python": [*python, "--child"]}
    if missing:
        del commands["Python"]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write(folder / "weights.safetensors", given.megabytes)
        if not missing:
            call([*python, "--convert", folder / "weights.safetensors"])
        print("| file | vlmdiff | Python | time | vlmdiff's peak | Python's peak |")
        print("|---|---|---|---|---|---|")
        for path in sorted(folder.iterdir()):
            found = {name: [] for name in commands}
            for round in range(given.rounds + 1):
                for name, command in commands.items():
                    output = call([*command, path])
                    if round > 0:
                        found[name].append(json.loads(output.splitlines()[-1]))
            seconds = {name: statistics.median(run["seconds"] for run in runs) for name, runs in found.items()}
            peak = {name: statistics.median(run["peak"] for run in runs) / path.stat().st_size for name, runs in found.items()}
            theirs, ratio, their_peak = "not installed", "", ""
            if not missing:
                theirs, their_peak = f"{seconds['Python']:.2f} s", f"{peak['Python']:.2f}"
                ratio = f"{seconds['vlmdiff'] / seconds['Python']:.2f} x"
            print(f"| `{path.name}` | {seconds['vlmdiff']:.2f} s | {theirs} | {ratio} | {peak['vlmdiff']:.2f} | {their_peak} |",
                  flush=True)


if __name__ == "__main__":
    main()

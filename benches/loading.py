#!/usr/bin/env python3
"""Time and peak memory of loading weights into a model, beside Python on the same files.

    benches/.venvs/networks/bin/python benches/loading.py        needs torch 2.11.0 and safetensors
    cargo build comes first: cargo bench --profile dev --bench loading --no-run

Every load is a process of its own, on a warm page cache, in interleaved rounds. The peak counts from before the model is made,
so the model itself is 1.0 of the file.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def write(folder, megabytes):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    tensors = {f"blocks.{i}.weight": torch.randn(1024, 4096) for i in range(megabytes // 16)}
    save_file(tensors, folder / "weights.safetensors")
    torch.save({"state_dict": tensors, "epoch": 1}, folder / "weights.ckpt")
    torch.save(tensors, folder / "legacy.pth", _use_new_zipfile_serialization=False)


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


def ours():
    command = ["cargo", "bench", "--profile", "dev", "--bench", "loading", "--no-run", "--message-format", "json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    built = [json.loads(line) for line in lines]
    return next(b["executable"] for b in built if b.get("executable") and b["target"]["name"] == "loading")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments.add_argument("--megabytes", type=int, default=1024)
    arguments.add_argument("--rounds", type=int, default=5)
    given = arguments.parse_args()
    if given.child:
        return child(given.child)
    program = ours()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write(folder, given.megabytes)
        print("| file | vlmdiff | Python | time | vlmdiff's peak | Python's peak |")
        print("|---|---|---|---|---|---|")
        for path in sorted(folder.iterdir()):
            commands = {"vlmdiff": [program, str(path)], "Python": [sys.executable, __file__, "--child", str(path)]}
            found = {name: [] for name in commands}
            for round in range(given.rounds + 1):
                for name, command in commands.items():
                    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    if round > 0:
                        found[name].append(json.loads(output.splitlines()[-1]))
            seconds = {name: statistics.median(run["seconds"] for run in runs) for name, runs in found.items()}
            peak = {name: statistics.median(run["peak"] for run in runs) / path.stat().st_size for name, runs in found.items()}
            ratio = seconds["vlmdiff"] / seconds["Python"]
            print(f"| {path.name} | {seconds['vlmdiff']:.2f} s | {seconds['Python']:.2f} s | {ratio:.2f} x"
                  f" | {peak['vlmdiff']:.2f} | {peak['Python']:.2f} |", flush=True)


if __name__ == "__main__":
    main()

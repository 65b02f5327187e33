#!/usr/bin/env python3
"""Installs the Python package into an environment of its own by `pip install .`, and checks what lies there.

    python3 setup/check_wheel.py [FOLDER]             by default a temporary one

It checks that one extension serves all versions of Python, that nothing of libtorch is in the package, and that the package runs a
pipeline with the worker and answers a query. CARGO_TARGET_DIR and LIBTORCH hold as for `make build`.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import venv

import toy
from fetch import ROOT, fail, say

PIPELINE = toy.pipeline(
    "dataset: synthetic, synthetic: { classes: [tile], train: 4, test_good: 1, test_per_defect: 1 }"
)

# Prints what is installed, and what it answers.
USE = """
import importlib.metadata, json, pathlib
import vlmdiff

package = importlib.metadata.distribution("vlmdiff")
vlmdiff.load("pipeline.yaml").run()
latents = vlmdiff.sql("select image_id, mean from latents order by 1").arrow()
print(json.dumps({
    "version": package.version,
    "tags": [line.split(": ")[1] for line in package.read_text("WHEEL").splitlines() if line.startswith("Tag: ")],
    "files": [str(package.locate_file(file)) for file in package.files],
    "worker": str(vlmdiff.worker()),
    "rows": latents.num_rows,
    "type": str(latents.schema.field("mean").type),
}))
"""


def check(folder):
    venv.create(folder / "environment", with_pip=True)
    python = folder / "environment/bin/python"
    began = time.monotonic()
    if subprocess.run([python, "-m", "pip", "install", "--disable-pip-version-check", "."], cwd=ROOT).returncode != 0:
        fail("pip install . did not succeed; its message is above")
    say(f"pip install . took {time.monotonic() - began:.0f} s")
    (folder / "pipeline.yaml").write_text(PIPELINE)
    # Neither the repository nor other packages are found from here.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VLMDIFF_WORKER", "VLMDIFF_STORE")}
    used = subprocess.run([python, "-c", USE], cwd=folder, env=environment, capture_output=True, text=True)
    if used.returncode != 0:
        fail(f"the installed package does not work: {used.stderr}")
    told = json.loads(used.stdout)
    if not told["tags"] or not all(tag.startswith("cp39-abi3-") for tag in told["tags"]):
        fail(f"the wheel is for {told['tags']}, and not for every Python from 3.9 on")
    files = [pathlib.Path(file) for file in told["files"]]
    extensions = [file for file in files if ".so" in file.suffixes]
    if [file.name for file in extensions] != ["_vlmdiff.abi3.so"]:
        fail(f"the package has the libraries {extensions}, and not its extension alone")
    needs = [name for name in (b"libtorch_cpu.so", b"libc10.so") if name in extensions[0].read_bytes()]
    if needs:
        fail(f"{extensions[0]} refers to {needs}")
    if told["rows"] < 5 or "fixed_shape_tensor" not in told["type"]:
        fail(f"the query answered {told['rows']} rows of {told['type']}")
    size = sum(file.stat().st_size for file in files if file.is_file())
    say(f"vlmdiff {told['version']} ({', '.join(told['tags'])}, {size / 1e6:.0f} MB, worker {told['worker']}): {told['rows']} latents"
        " by a network that was trained there")


if __name__ == "__main__":
    if sys.argv[1:]:
        chosen = pathlib.Path(sys.argv[1]).resolve()
        chosen.mkdir(parents=True, exist_ok=True)
        check(chosen)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            check(pathlib.Path(temporary))

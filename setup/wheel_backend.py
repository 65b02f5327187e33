"""Builds the Python package when pip asks for it (PEP 517): fetches libtorch, builds the worker, and leaves the rest to maturin.

The wheel has neither libtorch nor the worker in it. The package finds the worker in the folder in which both were built.
"""

import subprocess

import fetch
import maturin
from maturin import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def prepare():
    fetch.libtorch()
    subprocess.run(["cargo", "build", "--bin", "vlmdiff-worker"], check=True, cwd=fetch.ROOT)


def build_wheel(*arguments, **settings):
    prepare()
    return maturin.build_wheel(*arguments, **settings)


def build_editable(*arguments, **settings):
    prepare()
    return maturin.build_editable(*arguments, **settings)

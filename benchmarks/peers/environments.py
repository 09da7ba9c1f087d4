"""The environments in which the engines run: one each, made on first use with pip."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

TORCH = ["torch", "transformers", "peft"]  # of our versions
NEEDS: dict[str, list[str]] = {
    "loop": [],  # rayfed's own environment has all it needs
    "rayfed": [],
    "flower": ["flwr[simulation]>=1.41", *TORCH],
    "pfl": ["pfl[pytorch]>=0.6", *TORCH],
    "jax": ["jax", "numpy"],
    "blazefl": ["blazefl", "torch", "numpy"],
    "fedjax": [
        "fedjax",
        "jax==0.4.25",
        "jaxlib==0.4.25",
        "numpy<2",
        "scipy<1.13",
        "dm-haiku<0.0.13",
    ],  # calls what later JAX has removed
    "fluke": ["fluke-fl"],  # its torchvision does not load beside our torch
    "nvflare": ["nvflare", "torch"],
}
# Engines that need another Python than rayfed's, the first that is found.
PYTHONS = {"blazefl": ("3.14", "3.13", "3.12")}
SHOWN = {
    "flower": "flwr",
    "pfl": "pfl",
    "jax": "jax",
    "blazefl": "blazefl",
    "fedjax": "fedjax",
    "fluke": "fluke-fl",
    "nvflare": "nvflare",
}


class Missing(Exception):
    """An engine that cannot be had here; its text says why."""


def environment(engine: str, envs: Path) -> Path:
    """Return the Python of an engine's environment, made if it is not there: our torch, transformers and peft, the Ray it wants.

    Missing where it cannot be installed, also at a later call: a folder that failed is not tried again.
    """
    if not NEEDS[engine]:
        return Path(sys.executable)
    where = envs / engine
    python = where / "bin" / "python"
    if (where / "failed").is_file():
        raise Missing((where / "failed").read_text(encoding="utf-8"))
    if not (where / "ready").is_file():
        print(f"making {where}", flush=True)
        subprocess.run([interpreter(engine), "-m", "venv", str(where)], check=True)
        ours = versions(Path(sys.executable), TORCH)
        needs = [f"{n}=={ours[n].partition('+')[0]}" if n in ours else n for n in NEEDS[engine]]
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*pip, *needs], stderr=subprocess.PIPE, encoding="utf-8")
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            (where / "failed").write_text((errors or ["pip failed"])[-1], encoding="utf-8")
            raise Missing((where / "failed").read_text(encoding="utf-8"))
        (where / "ready").touch()
    return python


def interpreter(engine: str) -> str:
    """Return the Python with which an engine's environment is made: rayfed's, or another where PYTHONS says so."""
    for version in PYTHONS.get(engine, ()):
        places = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
        for place in filter(None, places):
            if not subprocess.run([str(place), "--version"], capture_output=True, env=os.environ).returncode:
                return str(place)
    if engine in PYTHONS:
        raise Missing(f"it needs Python {PYTHONS[engine][-1]} or newer, which is not here")
    return sys.executable


def versions(python: Path, packages: list[str]) -> dict[str, str]:
    """Return package -> version, as an environment has it."""
    code = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    done = subprocess.run([str(python), "-c", code, *packages], capture_output=True, encoding="utf-8", check=True)
    return json.loads(done.stdout)

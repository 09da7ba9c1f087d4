"""Compile a program (`program.py`) in a process of its own:

python -m rayfed.execute.tuning.compile_program PROGRAM.json PACKAGE.pt2 THREADS
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch

MOST = 2**31  # clients at once
# What surrounds the loops is called once a step and takes most of the compiler's time.
QUICKER = {"aot_inductor.compile_wrapper_opt_level": "O0"}


def main(source: str, package: str, threads: str) -> None:
    """Read a program's text and write its package; THREADS: how many its code uses."""
    torch.set_num_threads(int(threads))
    with open(source, encoding="utf-8") as file:
        program = json.load(file)
    exported = export(program)
    torch._inductor.aoti_compile_and_package(exported, package_path=package, inductor_configs=QUICKER)


def function(program: dict[str, Any]) -> Callable[..., tuple[Any, ...]]:
    """Return a program as a function of its inputs; outputs are contiguous."""
    first = next(n for n, (_, _, each) in enumerate(program["inputs"]) if each)
    outputs = "".join(f"{n}.contiguous(), " for n in program["outputs"])
    lines = [f"n = i[{first}].shape[0]", *program["lines"], f"return ({outputs})"]
    scope: dict[str, Any] = {"torch": torch}
    exec("def forward(*i):\n" + "".join(f" {line}\n" for line in lines), scope)
    return scope["forward"]


def export(program: dict[str, Any]) -> Any:
    """Return a program as torch exports it, its clients' axis dynamic."""
    inputs, forward = program["inputs"], function(program)

    class Step(torch.nn.Module):
        def forward(self, *i: Any) -> Any:
            return forward(*i)

    clients = torch.export.Dim("n", min=2, max=MOST)
    examples = [
        torch.zeros((4, *shape) if each else shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
        for shape, dtype, each in inputs
    ]
    axes = tuple({0: clients} if each else {} for _, _, each in inputs)
    return torch.export.export(Step(), tuple(examples), dynamic_shapes=(axes,), strict=False)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Programs of `rayfed.execute.tuning.program` run as the Python they are, in the place of compiled code: no compiler, no wait."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from rayfed.execute.tuning import compile_program


class Interpreted:
    """What `compiler.load` gives, without machine code."""

    def __init__(self, text: str, digest: str = "", folder: Path | None = None):
        self.program = json.loads(text)
        self.function = compile_program.function(self.program)

    def run(self, given: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return a program's outputs, once its inputs are what compiled code takes without looking."""
        clients = next(len(x) for x, (_, _, each) in zip(given, self.program["inputs"], strict=True) if each)
        for x, (shape, dtype, each) in zip(given, self.program["inputs"], strict=True):
            assert tuple(x.shape[1:] if each else x.shape) == tuple(shape) and str(x.dtype) == dtype, (x.shape, shape)
            assert x.is_contiguous() and (not each or len(x) == clients >= 2)
        return [x.clone() for x in self.function(*given)]

"""The compiling executor: the numbers of `vmap` from code made once, and `vmap` itself where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.errors import ConfigError
from rayfed.execute import compiled, vmap
from rayfed.execute.tuning import compiler, program, replay
from rayfed.launch.preflight import load_request
from rayfed.visits import Over, Phase
from tests.interpreted import Interpreted

K = 5


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is noted during the test; code is interpreted."""
    found: list[str] = []
    monkeypatch.setattr(compiler, "load", Interpreted)
    with replay.using("auto", found), compiled.using(lambda: tmp_path):
        yield found


def descend(carry: Any, batch: Any, key: Any) -> Any:
    """Take a step of least squares with a frozen part, one scalar and a leaf that stays."""

    def loss(w: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(batch["x"] @ carry["base"]) @ w
        return ((h - batch["y"]) ** 2).mean()

    g = torch.func.grad(loss)(carry["w"])
    return {**carry, "w": carry["w"] - carry["lr"] * g, "t": carry["t"] + 1}


def arguments(k: int = K, seed: int = 0, rows: int = 3, wide: bool = False) -> tuple[Any, Any, torch.Tensor]:
    """What a step is given; wide: the base as one copy for all clients."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    base = draw(4, 2).expand(k, 4, 2) if wide else draw(k, 4, 2)
    carry = {"w": draw(k, 2), "base": base, "lr": draw(k).abs(), "t": torch.arange(k)}
    return carry, {"x": draw(k, rows, 4), "y": draw(k, rows)}, torch.arange(k) + seed


def caller(step: Callable[..., Any], over: Over = Over("epochs", 1)) -> Callable[..., Any]:  # noqa: B008
    """Call a step as the executor does, always as the same piece."""
    phase = Phase(over, lambda *a: step(*a))
    f = vmap.vectorized(phase.step, 0)

    def call(*args: Any) -> Any:
        return compiled._call(phase, f, *args)

    call.phase, call.plain = phase, f  # type: ignore[attr-defined]
    return call


def steps_of(call: Any) -> list[compiled.Step]:
    return list(compiled._steps[call.phase.step].values())


def close(a: Any, b: Any) -> None:
    for (path, x), (_, y) in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13, msg=str(path))


@pytest.mark.parametrize("wide", [False, True])
def test_one_program_serves_any_number_of_clients(wide: bool, notes: list[str]) -> None:
    call = caller(descend)
    for k in (5, 1, 2, 4, 9, 5):
        args = arguments(k, seed=k, wide=wide)
        close(call(*args), call.plain(*args))
    # One client's base is no more shared than its own: a second form.
    assert not notes and len(steps_of(call)) == 1 + wide and not any(s.off for s in steps_of(call))
    texts = {json.dumps(s.package.program["lines"]) for s in steps_of(call)}
    assert len(texts) == 1 + wide and not any(f" {K}" in t for t in texts)


def test_what_a_step_hands_on_is_neither_copied_nor_repeated(notes: list[str]) -> None:
    call, args = caller(descend), arguments(wide=True)
    out = call(*args)
    assert out["base"].data_ptr() == args[0]["base"].data_ptr() and out["base"].stride() == args[0]["base"].stride()
    (step,) = steps_of(call)
    assert [4, 2] in [shape for shape, _, each in step.package.program["inputs"] if not each]


def test_a_model_that_all_begin_with_takes_no_program_of_its_own(notes: list[str]) -> None:
    call, (carry, batch, key) = caller(descend), arguments()
    first = {**carry, "w": carry["w"][0].expand(K, 2)}
    call(first, batch, key)
    call(carry, batch, key)
    one, two = steps_of(call)
    assert one.package.program == two.package.program


def draws(carry: Any, batch: Any, key: Any) -> Any:
    return {**carry, "w": carry["w"] + torch.rand(2, dtype=torch.float64)}


def reads(carry: Any, batch: Any, key: Any) -> Any:
    return {**carry, "w": carry["w"] * batch["x"].sum().item()}


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (draws, "draws from a global generator"),
        (reads, "item"),
        ("few", "decides which kernels"),
        ("const", "constant"),
    ],
)
def test_what_is_no_program_runs_as_under_vmap(step: Any, why: str, notes: list[str]) -> None:
    args = arguments()
    if isinstance(step, str):
        phase = Phase(Over("epochs", 1), lambda *a: descend(*a))

        def uneven(carry: Any, batch: Any, key: Any) -> Any:
            k = len(key)
            if step == "few":
                return {**carry, "w": carry["w"] * 2 if k > 2 else carry["w"].sin() - 1}
            return {**carry, "w": carry["w"] * torch.full((2,), float(k), dtype=torch.float64).sum() * CONSTANTS[k]}

        compiled._call(phase, uneven, *args)
        assert len(notes) == 1 and "runs as under vmap" in notes[0] and why in notes[0]
        assert tree.same(compiled._call(phase, uneven, *args), uneven(*args))
        return
    call = caller(step)
    if step is reads:
        with pytest.raises(RuntimeError, match="item"):
            call(*args)
    else:
        call(*args)
    assert len(notes) == 1 and "runs as under vmap" in notes[0] and why in notes[0]


CONSTANTS = {k: torch.tensor(float(k), dtype=torch.float64) for k in range(10)}


@pytest.mark.parametrize("at", [1, 64])
def test_other_numbers_than_a_plain_call_are_found(at: int, notes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    call, plays = caller(descend), 0
    run = Interpreted.run

    def wrong(self: Interpreted, given: list[torch.Tensor]) -> list[torch.Tensor]:
        nonlocal plays
        plays += 1
        return [x + 1e-6 if x.is_floating_point() and plays >= at else x for x in run(self, given)]

    monkeypatch.setattr(Interpreted, "run", wrong)
    for n in range(at + 5):
        args = arguments(seed=n)
        out = call(*args)
        if n >= at - 1:
            assert tree.same(out, call.plain(*args)), "the plain call's bits"
    assert len(notes) == 1 and f"call {at} of it" in notes[0] and "float64" in notes[0]
    assert plays == at


def test_rounding_is_no_difference(notes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = Interpreted.run
    monkeypatch.setattr(Interpreted, "run", lambda self, given: [
        x * (1 + 2e-16) if x.is_floating_point() else x for x in run(self, given)
    ])  # fmt: skip
    call = caller(descend)
    for n in range(5):
        carry, batch, key = arguments(seed=n)
        call(
            {**carry, "lr": carry["lr"] * 1e-10}, batch, key
        )  # an update of which the weights' own rounding is no small part
    assert not notes


@pytest.mark.parametrize("kind", ["once", "whole"])
def test_steps_as_wide_as_a_clients_data_are_not_compiled(kind: Any, notes: list[str]) -> None:
    call = caller(descend, Over(kind, 1))
    call(*arguments())
    assert call.phase.step not in compiled._steps and not notes


def test_a_visit_with_arguments_runs_under_vmap() -> None:
    from rayfed import execute

    visit: Any = type("Visit", (), {"vectorize": True})
    assert execute.choose_executor("compiled", visit) == "compiled"
    assert execute.choose_executor("compiled", visit, arguments=True) == "vmap"
    visit.vectorize = "it reads values"
    assert execute.choose_executor("compiled", visit) == "loop"


# -- packages ----------------------------------------------------------------------------------------------------------

QUICK = """
import sys, time, zipfile, pathlib
made = pathlib.Path(sys.argv[2])
log = pathlib.Path(__file__).with_name("log")
log.write_text((log.read_text() if log.exists() else "") + "x")
{body}
with zipfile.ZipFile(made, "w") as z:
    z.writestr("code", "machine")
"""


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A compiler that writes a zip file at once, with some Python before; returns the file that counts its calls."""

    def install(body: str = "") -> Path:
        where = tmp_path / "quick"
        where.mkdir(exist_ok=True)
        (where / "quick_compiler.py").write_text(QUICK.format(body=body), encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", str(where))
        monkeypatch.setattr(compiler, "MAIN", "quick_compiler")
        monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", lambda path, *a: path)
        return where / "log"

    return install


def test_a_package_is_made_once(quick: Callable[..., Path], tmp_path: Path) -> None:
    log = quick()
    first = compiler.load("{}", "name", tmp_path / "cache")
    assert compiler.load("{}", "name", tmp_path / "cache") == first and log.read_text() == "x"
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"] == [Path(first).name]


def test_a_damaged_package_is_made_again(quick: Callable[..., Path], tmp_path: Path) -> None:
    log = quick()
    path = Path(compiler.load("{}", "name", tmp_path))
    whole = path.read_bytes()
    for damaged in (whole[:20], b"", whole.replace(b"machine", b"machime")):
        path.write_bytes(damaged)
        compiler.load("{}", "name", tmp_path)
        assert path.read_bytes()[30:40] == whole[30:40] and zipfile.ZipFile(path).testzip() is None
    assert log.read_text() == "xxxx"


@pytest.mark.parametrize("body", ["raise SystemExit('no such header')", "import os; os.kill(os.getpid(), 9)"])
def test_a_compilation_that_ends_early_leaves_nothing(body: str, quick: Callable[..., Path], tmp_path: Path) -> None:
    quick(body)
    with pytest.raises(compiler.CannotCompile, match=r"no such header|exit status -9"):
        compiler.load("{}", "name", tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"]
    quick()
    compiler.load("{}", "name", tmp_path / "cache")


def test_what_a_killed_process_has_left_is_cleared(quick: Callable[..., Path], tmp_path: Path) -> None:
    quick()
    path = Path(compiler.load("{}", "name", tmp_path / "cache"))
    path.unlink()
    for name in (f".{path.stem}-half", ".another-half"):
        (path.parent / name).mkdir()
    compiler.load("{}", "name", tmp_path / "cache")
    assert {p.name for p in path.parent.iterdir()} == {path.name, f".{path.stem}.lock", ".another-half"}


def test_without_a_compiler_a_package_still_serves(
    quick: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick()
    compiler.load("{}", "known", tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler")
    compiler.load("{}", "known", tmp_path)
    with pytest.raises(compiler.CannotCompile, match=r"no C\+\+ compiler \(no-such-compiler\)"):
        compiler.load("{}", "other", tmp_path)


def test_processes_that_need_the_same_package_make_it_once(quick: Callable[..., Path], tmp_path: Path) -> None:
    log = quick("time.sleep(1)")
    script = textwrap.dedent(
        """
        import sys, torch
        from pathlib import Path
        from rayfed.execute.tuning import compiler
        compiler.MAIN = "quick_compiler"
        torch._C._aoti.AOTIModelPackageLoader = lambda path, *a: path
        compiler.load("{}", "name", Path(sys.argv[1]))
        """
    )
    root = str(Path(compiled.__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": f"{os.environ['PYTHONPATH']}{os.pathsep}{root}"}
    both = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "cache")], env=env) for _ in range(2)]
    assert [p.wait(120) for p in both] == [0, 0]
    assert log.read_text() == "x"


def test_a_time_limit_of_clients_does_not_run_while_code_is_made(quick: Callable[..., Path], tmp_path: Path) -> None:
    from rayfed.engine.time_limit import time_limit

    quick("time.sleep(1)")
    with time_limit(0.5, "failures.client_timeout_s"):
        compiler.load("{}", "name", tmp_path)


def test_the_name_of_a_package_says_what_code_depends_on(
    quick: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick()
    found = {compiler.load("{}", "name", tmp_path)}
    monkeypatch.setattr(compiler.torch, "get_num_threads", lambda: 7)
    found.add(compiler.load("{}", "name", tmp_path))
    compiler._where.cache_clear()
    monkeypatch.setattr(compiler.torch, "__version__", "9.9")
    found.add(compiler.load("{}", "name", tmp_path))
    compiler._where.cache_clear()
    assert len(found) == 3


def test_text_that_cannot_be_written_down_is_refused() -> None:
    with pytest.raises(program.NoProgram, match="complex"):
        program._literal(1j)


# -- asked for ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "why"),
    [({}, r"there is no C\+\+ compiler \(no-such-compiler\)"), ({"replay": "off"}, "resources.replay: off found")],
)
def test_a_machine_that_cannot_compile_says_so_before_the_start(
    more: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not more:
        monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=f"resources.executor: compiled found, but {why}"):
        load_request("quickstart", {"resources.executor": "compiled", **{f"resources.{n}": v for n, v in more.items()}})

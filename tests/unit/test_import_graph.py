"""What imports what: no cycle, and arrows between packages run one way.

The graph is read from the sources. Imports inside functions count as those at the head of a module do. Left out are imports
under TYPE_CHECKING, which are never executed (a method's hints name Fed and Task, and theirs name Method), and what a registry
imports by name from its own folder (`rayfed.methods.get("fedavg")`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

import rayfed

ROOT = Path(__file__).resolve().parents[2]
TOPS = ("rayfed", "actors", "tune_spaces")

LAYERS: tuple[tuple[str, ...], ...] = (  # a unit imports only what is in layers below its own
    ("tune_spaces",),
    ("actors",),
    ("rayfed.__main__",),
    ("rayfed.cli", "rayfed.api"),
    ("rayfed.launch",),
    ("rayfed.served", "rayfed.monitor"),
    ("rayfed.engine",),
    ("rayfed.track",),
    ("rayfed.report",),
    ("rayfed.methods",),
    ("rayfed.fed", "rayfed.cluster", "rayfed.distill", "rayfed.transform"),
    ("rayfed.task",),
    ("rayfed.partition",),
    ("rayfed.data",),
    ("rayfed.models",),
    ("rayfed.adapters",),
    ("rayfed.execute", "rayfed.storage"),
    (
        "rayfed.method",
        "rayfed.training",
        "rayfed.fold",
        "rayfed.aggregate",
        "rayfed.attack",
        "rayfed.augment",
        "rayfed.adversarial",
        "rayfed.cut",
    ),
    ("rayfed.clock",),
    (
        "rayfed.wire",
        "rayfed.visits",
        "rayfed.optimizers",
        "rayfed.schedules",
        "rayfed.stragglers",
        "rayfed.participation",
        "rayfed.selection",
        "rayfed.privacy",
        "rayfed.set_metrics",
    ),
    ("rayfed.config", "rayfed.metrics", "rayfed.tree", "rayfed.keys", "rayfed.traces", "rayfed.fronts"),
    ("rayfed.errors", "rayfed.lazy"),
    ("rayfed",),  # the package itself imports its names when they are used
)
# What the user calls reaches Ray only when it is asked to: inside functions.
REACHES_RAY = {(user, top) for user in ("rayfed.cli", "rayfed.api") for top in ("actors", "tune_spaces")}


class Import(NamedTuple):
    """An import statement: the module named, and where it stands."""

    name: str
    local: bool  # inside a function
    typing: bool  # under TYPE_CHECKING


Graph = dict[str, dict[str, Import]]  # module -> module that it imports -> how


def imports(tree: ast.AST, package: str, local: bool = False, typing: bool = False) -> Iterator[Import]:
    """Yield every import below a node; package: what relative imports start from."""
    for node in ast.iter_child_nodes(tree):
        inner_local = local or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for statement in node.body:
                yield from imports(ast.Module([statement], []), package, local, True)
            for statement in node.orelse:
                yield from imports(ast.Module([statement], []), package, local, typing)
            continue
        if isinstance(node, ast.Import):
            yield from (Import(a.name, local, typing) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            above = ".".join([*base, *([node.module] if node.module else [])])
            yield from (Import(f"{above}.{a.name}", local, typing) for a in node.names)
        yield from imports(node, package, inner_local, typing)


def packages(name: str) -> list[str]:
    """Return the packages that a module stands in, which an import of it executes too."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def read(root: Path, tops: tuple[str, ...] = TOPS) -> tuple[Graph, dict[str, list[Import]]]:
    """Return the graph of the modules below `root`, and of each module the imports of what is not ours."""
    files = {}
    for top in tops:
        for file in (root / top).rglob("*.py"):
            name = ".".join(file.relative_to(root).with_suffix("").parts)
            files[name.removesuffix(".__init__")] = file
    homes = {f"rayfed.{n}": f"rayfed.{home}.{n}" for n, home in rayfed._HOME.items()}  # `from rayfed import Method`
    graph: Graph = {}
    foreign: dict[str, list[Import]] = {}
    for name, file in files.items():
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        graph[name], foreign[name] = {}, []
        for found in imports(ast.parse(file.read_text()), package):
            named = homes.get(found.name, found.name)
            target = named if named in files else named.rpartition(".")[0]
            if target not in files:
                foreign[name].append(found)
                continue
            for passed in (target, *packages(target)):
                if passed not in files or passed == name or name.startswith(f"{passed}."):
                    continue  # a module's own packages are there before it
                known = graph[name].get(passed)
                if known is None or (found.typing, found.local) < (known.typing, known.local):
                    graph[name][passed] = found
    return graph, foreign


def executed(graph: Graph) -> dict[str, list[str]]:
    """Return the graph without what only type checkers read."""
    return {name: [t for t, how in found.items() if not how.typing] for name, found in graph.items()}


def cycle(graph: Mapping[str, list[str]]) -> list[str]:
    """Return the modules of a cycle, the first again at the end; [] if there is none."""
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for target in graph[name]:
            if found := visit(target):
                return found
        done.add(path.pop())
        return []

    for name in graph:
        if found := visit(name):
            return found
    return []


def unit(name: str) -> str:
    """Return what stands in a layer: `rayfed.engine` of `rayfed.engine.runner`, `actors` of `actors.pool`."""
    top, *inner = name.split(".")
    return f"{top}.{inner[0]}" if top == "rayfed" and inner else top


def wrong_arrows(graph: Mapping[str, list[str]]) -> set[tuple[str, str]]:
    """Return the imports that do not lead to a lower layer, by module."""
    depth = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    return {
        (name, target)
        for name, found in graph.items()
        for target in found
        if unit(name) != unit(target) and depth[unit(name)] >= depth[unit(target)]
    }


GRAPH, FOREIGN = read(ROOT)


def test_there_is_no_cycle() -> None:
    assert cycle(executed(GRAPH)) == []


def test_every_package_has_its_layer() -> None:
    placed = [name for layer in LAYERS for name in layer]
    assert len(placed) == len(set(placed))
    assert set(placed) == {unit(name) for name in GRAPH}


def test_arrows_between_packages_run_one_way() -> None:
    found = {(a, b) for a, b in wrong_arrows(executed(GRAPH)) if (unit(a), unit(b)) not in REACHES_RAY}
    assert found == set()


def test_the_schema_imports_nothing_of_ours_but_errors() -> None:
    assert GRAPH["rayfed.config.schema"].keys() <= {"rayfed.errors"}


def test_only_what_users_call_reaches_ray_and_only_inside_functions() -> None:
    for name, found in GRAPH.items():
        for target, how in found.items():
            if name.startswith("rayfed") and not target.startswith("rayfed"):
                assert (unit(name), unit(target)) in REACHES_RAY, (name, target)
                assert how.local or how.typing, (name, target)
    users = {n: [i.name for i in found if i.name.split(".")[0] == "ray"] for n, found in FOREIGN.items()}
    assert not {n for n, found in users.items() if found and n.startswith("rayfed")}


# -- the reader itself -------------------------------------------------------------------------------------------------


def write(root: Path, files: Mapping[str, str]) -> Graph:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return read(root, ("rayfed",))[0]


@pytest.mark.parametrize(
    "back",
    [
        "from rayfed import a",
        "import rayfed.a",
        "from rayfed.a import thing",
        "from . import a",
        "from ..rayfed.a import thing",
        "def f():\n    from rayfed.a import thing",
        "class C:\n    def f(self):\n        if self:\n            import rayfed.a as x",
        "try:\n    import rayfed.a\nexcept ImportError:\n    pass",
        "if not TYPE_CHECKING:\n    pass\nelse:\n    pass\nimport rayfed.a",
    ],
)
def test_a_cycle_is_found_however_it_is_written(tmp_path: Path, back: str) -> None:
    graph = write(tmp_path, {"rayfed/__init__.py": "", "rayfed/a.py": "import rayfed.b", "rayfed/b.py": back})
    assert set(cycle(executed(graph))) == {"rayfed.a", "rayfed.b"}


def test_an_import_executes_the_packages_around_what_it_names(tmp_path: Path) -> None:
    files = {"rayfed/__init__.py": "", "rayfed/p/__init__.py": "import rayfed.b", "rayfed/p/a.py": ""}
    graph = write(tmp_path, {**files, "rayfed/b.py": "from rayfed.p.a import thing"})
    assert set(cycle(executed(graph))) == {"rayfed.p", "rayfed.b"}
    graph = write(tmp_path, {**files, "rayfed/b.py": "", "rayfed/p/a.py": "from rayfed.p import thing"})
    assert cycle(executed(graph)) == []


def test_what_is_not_executed_is_left_out(tmp_path: Path) -> None:
    hint = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rayfed.a import thing\n"
    graph = write(tmp_path, {"rayfed/__init__.py": "", "rayfed/a.py": "import rayfed.b", "rayfed/b.py": hint})
    assert cycle(executed(graph)) == [] and graph["rayfed.b"]["rayfed.a"].typing
    graph = write(tmp_path, {"rayfed/b.py": hint + "else:\n    import rayfed.a\n"})
    assert cycle(executed(graph)) != []


def test_an_arrow_upwards_and_one_within_a_layer_are_wrong() -> None:
    graph = {
        "rayfed.engine.runner": ["rayfed.launch.start", "rayfed.engine.pool", "rayfed.tree"],
        "rayfed.fold": ["rayfed.method"],
        "actors.pool": ["tune_spaces.sweep.driver"],
    }
    assert wrong_arrows(graph) == {
        ("rayfed.engine.runner", "rayfed.launch.start"),
        ("rayfed.fold", "rayfed.method"),
        ("actors.pool", "tune_spaces.sweep.driver"),
    }

"""The house rules that a program can check: floors, docstrings, annotations, sizes, and calls that are not wanted."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "nda"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
FLOORS = {
    -1: ["__init__", "checks"],
    0: ["rng", "schedule", "store", "fanout"],
    1: ["images", "subsets", "patches", "projection"],
    2: ["diffusion", "gradients", "curvature"],
    3: ["nonparametric", "provenance", "similarity", "retrain", "references", "trak", "influence"],
    4: ["lds", "counterfactual", "methods", "products"],
    5: ["figures", "selection", "scoring", "ablations"],
    6: ["pipeline", "curves", "shipping", "gradient_ablations"],
    7: ["__main__"],
}
FLOOR = {module: floor for floor, modules in FLOORS.items() for module in modules}
UNWANTED = {
    "torch.save", "torch.load", "np.load", "numpy.load", "np.save", "numpy.save", "joblib.dump", "joblib.load",
    "np.random.seed", "numpy.random.seed", "random.seed",
}  # fmt: skip


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, "." * node.level + f"{node.module or ''}.{alias.name}".strip(".")) for alias in node.names)


def broken_floors(file: str, source: str) -> list[str]:
    """What `nda/<file>` imports from its own floor or above."""
    module = file.removesuffix(".py").split("/")[0]
    if module not in FLOOR:
        return [f"nda/{file}:1 has no floor; give it one in FLOORS"]
    found = []
    for line, name in imports(ast.parse(source)):
        parts = name.split(".")
        if parts[0] == "":
            found.append(f"nda/{file}:{line} imports {name} relatively; write nda.… so that its floor can be seen")
        target = parts[1] if len(parts) > 1 else "__init__"
        if parts[0] == "nda" and not (FLOOR.get(target, 99) < FLOOR[module] or target == module == "patches"):
            found.append(f"nda/{file}:{line} imports {name} (floor {FLOOR.get(target)}) from floor {FLOOR[module]}")
    return found


def unwanted(file: str, source: str) -> list[str]:
    """Pickles, global seeds and hard-wired devices."""
    found = []
    for line, name in imports(ast.parse(source)):
        if name.split(".")[0] in ("pickle", "dill", "cloudpickle") or name in UNWANTED | {"torch.manual_seed"}:
            found.append(f"nda/{file}:{line} imports {name}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = ast.unparse(node.func)
            if name in UNWANTED or node.func.attr == "cuda" or (name.endswith("torch.manual_seed") and file != "rng.py"):
                found.append(f"nda/{file}:{node.lineno} calls {name}")
    return found


def public(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public classes, functions and methods."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


def undocumented(file: str, source: str) -> list[str]:
    """Public names without a docstring or with an argument or result that is not annotated."""
    found = []
    for node in public(ast.parse(source)):
        place = f"nda/{file}:{node.lineno} {node.name}"
        if not ast.get_docstring(node):
            found.append(f"{place} has no docstring")
        if isinstance(node, ast.FunctionDef):
            a = node.args
            named = [x for x in [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg] if x and x.arg not in ("self", "cls")]
            found += [f"{place}: {x.arg} is not annotated" for x in named if x.annotation is None]
            if node.returns is None:
                found.append(f"{place}: the result is not annotated")
    return found


def too_long(file: str, source: str) -> list[str]:
    """Files over 260 lines, functions over 45."""
    found = [f"nda/{file} has {len(source.splitlines())} lines"] if len(source.splitlines()) > 260 else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and (length := node.end_lineno - node.lineno + 1) > 45:
            found.append(f"nda/{file}:{node.lineno} {node.name} has {length} lines")
    return found


@pytest.mark.parametrize("rule", [broken_floors, unwanted, undocumented, too_long])
@pytest.mark.parametrize("file", FILES)
def test_rule(rule, file):
    problems = rule(file, (PACKAGE / file).read_text())
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("rule", "file", "source"),
    [
        (broken_floors, "rng.py", "from nda import store"),
        (broken_floors, "lds.py", "def f():\n    import nda.pipeline"),
        (broken_floors, "patches/conv.py", "from nda.diffusion import train"),
        (broken_floors, "lds.py", "from . import rng"),
        (broken_floors, "utils.py", ""),
        (unwanted, "store.py", "import pickle"),
        (unwanted, "lds.py", "torch.manual_seed(0)"),
        (unwanted, "lds.py", "from torch import load"),
        (unwanted, "lds.py", "model.cuda()"),
        (undocumented, "lds.py", "def f(x: int) -> int: ..."),
        (undocumented, "lds.py", "def f(x) -> int:\n    '''Do.'''"),
        (undocumented, "lds.py", "class A:\n    '''A.'''\n    def f(self):\n        '''Do.'''"),
        (too_long, "lds.py", "x = 1\n" * 261),
        (too_long, "lds.py", "def f():\n" + "    x = 1\n" * 45),
    ],
)
def test_rule_can_fail(rule, file, source):
    assert rule(file, source)


def test_message_names_file_line_and_import():
    assert broken_floors("rng.py", "import os\nfrom nda.store import Store") == [
        "nda/rng.py:2 imports nda.store.Store (floor 0) from floor 0"
    ]

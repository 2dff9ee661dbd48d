"""The house rules that a program can check: wings, docstrings, annotations, sizes, and calls that
are not wanted."""

import ast
import builtins
import re
import symtable
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "nda"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
# What a file may import: wings further up in this list and files of its own wing. A file of the
# ground imports only those that stand before it in their line.
WINGS = [
    ["errors", "places", "rng", "checks", "schedule", "store", "fanout"],
    ["data"],
    ["model"],
    ["nonparametric"],
    ["rivals"],
    ["methods"],
    ["evidence"],
    ["report"],
    ["artefact"],
    ["trace"],
    ["__main__"],
]
WING = {name: number for number, names in enumerate(WINGS) for name in names}
UNWANTED = {
    "torch.save",
    "torch.load",
    "np.load",
    "numpy.load",
    "np.save",
    "numpy.save",
    "joblib.dump",
    "joblib.load",
    "np.random.seed",
    "numpy.random.seed",
    "random.seed",
}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (
                (node.lineno, "." * node.level + f"{node.module or ''}.{alias.name}".strip("."))
                for alias in node.names
            )


def broken_wings(file: str, source: str) -> list[str]:
    """What `nda/<file>` imports from a wing further down."""
    me = file.removesuffix(".py").split("/")[0]
    if me == "__init__":
        return []
    if me not in WING:
        return [f"nda/{file}:1 belongs to no wing; give it a place in WINGS"]
    found = []
    for line, name in imports(ast.parse(source)):
        parts = name.split(".")
        if parts[0] == "":
            found.append(
                f"nda/{file}:{line} imports {name} relatively; write nda.… to show its wing"
            )
        target = parts[1] if len(parts) > 1 else "__init__"
        if (
            parts[0] == "nda"
            and target != "__version__"
            and not _allowed(me, target, ground=WINGS[0])
        ):
            found.append(
                f"nda/{file}:{line} imports {name}, but {target} is not before {me} in WINGS"
            )
    return found


def _allowed(me: str, target: str, ground: list[str]) -> bool:
    if me in ground and target in ground:
        return ground.index(target) < ground.index(me)
    return WING.get(target, len(WINGS)) < WING[me] or target == me


def unwanted(file: str, source: str) -> list[str]:
    """Pickles, global seeds and hard-wired devices."""
    found = []
    for line, name in imports(ast.parse(source)):
        if name.split(".")[0] in ("pickle", "dill", "cloudpickle") or name in UNWANTED | {
            "torch.manual_seed"
        }:
            found.append(f"nda/{file}:{line} imports {name}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = ast.unparse(node.func)
            if (
                name in UNWANTED
                or node.func.attr == "cuda"
                or (name.endswith("torch.manual_seed") and file != "rng.py")
            ):
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
            named = [
                x
                for x in [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
                if x and x.arg not in ("self", "cls")
            ]
            found += [f"{place}: {x.arg} is not annotated" for x in named if x.annotation is None]
            if node.returns is None:
                found.append(f"{place}: the result is not annotated")
    return found


def too_long(file: str, source: str) -> list[str]:
    """Functions over 45 lines, their docstrings not counted."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            length = node.end_lineno - node.lineno + 1 - len((docstring or "").splitlines())
            if length > 45:
                found.append(f"nda/{file}:{node.lineno} {node.name} has {length} lines")
    return found


def undefined(file: str, source: str) -> list[str]:
    """Names that nothing defines. Linter and type checker are told not to look for them, because of
    jaxtyping's strings in annotations, which are not looked at here."""
    module = symtable.symtable(source, file, "exec")
    own = {s.get_name() for s in module.get_symbols() if s.is_assigned() or s.is_imported()}
    own |= {*dir(builtins), "__file__"}
    tables, found = [module], []
    for table in tables:
        tables += table.get_children()
        used = (s.get_name() for s in table.get_symbols() if s.is_referenced() and s.is_global())
        found += [f"nda/{file}:{table.get_name()} uses {name}" for name in used if name not in own]
    return found


@pytest.mark.parametrize("rule", [broken_wings, unwanted, undocumented, too_long, undefined])
@pytest.mark.parametrize("file", FILES)
def test_rule(rule, file):
    problems = rule(file, (PACKAGE / file).read_text())
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("rule", "file", "source"),
    [
        (broken_wings, "rng.py", "from nda import store"),
        (broken_wings, "rng.py", "from nda.rng import seed"),
        (broken_wings, "evidence/lds.py", "def f():\n    import nda.artefact.release"),
        (broken_wings, "nonparametric/patches/conv.py", "from nda.rivals.trak import trak_scores"),
        (broken_wings, "evidence/lds.py", "from . import ranks"),
        (broken_wings, "utils.py", ""),
        (unwanted, "store.py", "import pickle"),
        (unwanted, "lds.py", "torch.manual_seed(0)"),
        (unwanted, "lds.py", "from torch import load"),
        (unwanted, "lds.py", "model.cuda()"),
        (undocumented, "lds.py", "def f(x: int) -> int: ..."),
        (undocumented, "lds.py", "def f(x) -> int:\n    '''Do.'''"),
        (undocumented, "lds.py", "class A:\n    '''A.'''\n    def f(self):\n        '''Do.'''"),
        (undefined, "lds.py", "def f():\n    return math.nan"),
        (undefined, "lds.py", "x = math.nan"),
        (too_long, "lds.py", "def f():\n" + "    x = 1\n" * 45),
        (too_long, "lds.py", "def f():\n    '''Do.'''\n" + "    x = 1\n" * 45),
    ],
)
def test_rule_can_fail(rule, file, source):
    assert rule(file, source)


def test_contributing_shows_this_map():
    page = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    lines = re.findall(r"^\d+\. ((?:`\w+` ?)+):", page, re.MULTILINE)
    assert [re.findall(r"\w+", line) for line in lines] == WINGS


def test_message_names_file_line_and_import():
    assert broken_wings("rng.py", "import os\nfrom nda.store import Store") == [
        "nda/rng.py:2 imports nda.store.Store, but store is not before rng in WINGS"
    ]

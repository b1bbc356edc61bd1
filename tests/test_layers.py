"""Who may import whom, who may open files for writing, and how long things may be: read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "suture"
FILES = {path.relative_to(SRC).as_posix(): ast.parse(path.read_bytes()) for path in sorted(SRC.rglob("*.py"))}

# Each unit (a file or a folder of src/suture) may import the units it names, all of which stand above it.
MAY_IMPORT = {
    "values": [],
    "home": [],
    "compiled": [],
    "noise": ["compiled"],
    "errors": ["values"],
    "codec": ["errors"],
    "formats": ["values", "errors", "codec", "home", "compiled"],
    "arch": ["values", "errors", "codec", "home"],
    "methods": ["values"],
    "factors": ["values", "formats", "methods"],
    "equality": ["values", "formats", "factors"],
    "stats": ["values", "formats"],
    "sides": ["values", "formats"],
    "beside": ["values", "formats"],
    "measures": ["values", "noise", "formats", "factors", "methods"],
    "onto": ["values", "errors", "formats"],
    "model_folder": ["values", "errors", "formats", "arch"],
    "run_folder": ["values", "errors", "formats"],
    "patterns": ["errors"],
    "targets": ["values", "errors", "formats", "patterns"],
    "rewriting": [],
    "groups": ["values", "rewriting"],
    "resolve": ["values", "methods", "targets", "rewriting"],
    "planning": ["values", "errors", "codec", "formats", "methods"],
    "rules": [
        *["values", "formats", "stats", "beside", "measures", "model_folder", "run_folder"],
        *["targets", "rewriting", "resolve", "planning"],
    ],
    "execute": ["values", "errors", "codec", "compiled", "noise", "formats", "methods", "factors", "planning"],
    "verification": ["values", "errors", "codec", "compiled", "noise", "formats", "methods", "planning"],
    "modes": [],
    "pages": ["values", "errors", "methods", "rules", "modes"],
    "code_hosts": ["values", "rules", "pages"],
    "pipeline": [
        *["values", "errors", "formats", "arch", "equality", "stats", "sides", "beside", "measures", "resolve"],
        *["onto", "planning", "rules", "execute", "verification"],
    ],
    "dequantizing": ["values", "errors", "formats", "sides", "planning", "execute", "pipeline"],
    "inspection": ["values", "formats", "arch", "targets", "rewriting", "groups", "resolve", "pipeline"],
    "training": [
        *["values", "errors", "codec", "formats", "arch", "targets", "rewriting", "groups", "execute", "pipeline"],
        *["rules"],
    ],
    "checking": [
        *["values", "errors", "formats", "arch", "measures", "model_folder", "run_folder", "rules", "pipeline"],
        *["training"],
    ],
    "separation": ["values", "errors", "rewriting", "targets", "rules"],
    "repairing": [
        *["values", "errors", "formats", "equality", "planning", "rules", "execute", "verification", "pipeline"],
        *["separation"],
    ],
    "cli": [
        *["values", "errors", "codec", "compiled", "planning", "rules", "verification", "pages", "code_hosts"],
        *["pipeline", "dequantizing", "inspection", "training", "checking", "repairing"],
    ],
}
ROOTS = {"__init__", "__main__"}  # the package's face: `import suture` is lazy, `python -m suture` is cli

HEAVY = {"torch", "transformers", "peft", "safetensors", "huggingface_hub"}
OPEN_NOTHING = ("methods", "targets", "rewriting", "resolve", "planning", "rules")
# And all of training.
USE_TRANSFORMERS = {"arch/meta.py", "arch/reads.py", "formats/gguf/generated.py", "verification/witness.py"}
USE_PEFT = {"verification/witness.py"}  # and all of training
WRITE = {
    *["execute/claim.py", "execute/probe.py", "execute/staging.py", "formats/pickles.py", "arch/cache.py"],
    *["formats/gguf/folder.py", "formats/gguf/generated.py"],
    *["training/folder.py", "training/trainer.py"],
}
A_RUN = "training"  # imported only when a run begins, which needs every library; its __init__ stays light


def unit_of(file: str) -> str:
    """`values` for values.py, `planning` for planning/layout.py."""
    return file.split("/")[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of all modules (and names of packages) that are imported anywhere in a tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def libraries(tree: ast.AST) -> set[str]:
    return {name.split(".")[0] for name in imports(tree)}


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: all but the bodies of functions and of `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not is_function and not is_typing:
            yield node
            yield from at_import(node)


def imported_units(file: str) -> set[str]:
    names = [name.split(".")[1] for name in imports(FILES[file]) if name.startswith("suture.")]
    return {name for name in names if name in MAY_IMPORT} - {unit_of(file)}


def writes(tree: ast.AST) -> list[str]:
    """Every place where a module could open a file for writing."""
    return [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call) and _writes(node)]


def _writes(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    if name == "os.open":
        flags = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND", "O_TRUNC"}
        return ast.unparse(call.args[0]) != "os.devnull" and any(f"os.{flag}" in ast.unparse(call) for flag in flags)
    if last in {"open", "fdopen"}:
        modes = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
        return any(isinstance(mode, str) and len(mode) < 4 and set(mode) & set("wax+") for mode in modes)
    return last in {"write_text", "write_bytes", "touch", "tofile", "memmap", "save_file", "save_pretrained"} or (
        name.startswith(("shutil.copy", "shutil.move", "tempfile.")) or name in {"np.save", "torch.save", "os.write"}
    )


def test_every_unit_has_a_place():
    assert {unit_of(file) for file in FILES} == MAY_IMPORT.keys() | ROOTS


def test_imports_go_one_way():
    above: set[str] = set()
    for unit, allowed in MAY_IMPORT.items():
        assert above >= set(allowed), unit
        above.add(unit)
    assert "execute" not in MAY_IMPORT["verification"]


@pytest.mark.parametrize("file", [file for file in FILES if unit_of(file) not in ROOTS])
def test_a_file_imports_only_what_its_unit_may(file):
    assert imported_units(file) <= set(MAY_IMPORT[unit_of(file)])


def test_the_verifier_reads_files_its_own_way():
    used = {
        name
        for file, tree in FILES.items()
        if unit_of(file) == "verification"
        for name in imports(tree)
        if name.startswith("suture.formats")
    }
    allowed = tuple(f"suture.formats.quantized.{name}" for name in ("decoder", "requantize", "base"))
    assert {name for name in used if not name.startswith(allowed)} == set()


def test_the_table_allows_nothing_that_is_not_used():
    used: dict[str, set[str]] = {unit: set() for unit in MAY_IMPORT}
    for file in FILES:
        if unit_of(file) in used:
            used[unit_of(file)] |= imported_units(file)
    assert {unit: set(allowed) - used[unit] for unit, allowed in MAY_IMPORT.items() if set(allowed) - used[unit]} == {}


@pytest.mark.parametrize("file", FILES)
def test_no_import_is_relative_and_none_is_heavy_at_import(file):
    assert not [name for name in imports(FILES[file]) if name.startswith(".")]
    if unit_of(file) == A_RUN and file != "training/__init__.py":
        return
    nodes = [node for node in at_import(FILES[file]) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not libraries(ast.Module(nodes, [])) & HEAVY


@pytest.mark.parametrize("file", [file for file in FILES if unit_of(file) in OPEN_NOTHING])
def test_the_pure_middle_opens_nothing(file):
    assert not libraries(FILES[file]) & {*HEAVY, "os", "io", "shutil", "tempfile", "mmap", "subprocess"}
    calls = [ast.unparse(node.func) for node in ast.walk(FILES[file]) if isinstance(node, ast.Call)]
    effects = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "print", "exists", "iterdir", "glob"}
    assert not [call for call in calls if call.rpartition(".")[2] in effects]


def test_who_knows_transformers_and_peft():
    others = {file: tree for file, tree in FILES.items() if unit_of(file) != A_RUN}
    assert {file for file, tree in others.items() if "transformers" in libraries(tree)} <= USE_TRANSFORMERS
    assert {file for file, tree in others.items() if "peft" in libraries(tree)} <= USE_PEFT
    inside = {
        "transformers." + part for part in ("core_model_loading", "conversion_mapping", "models", "modeling_utils")
    }
    for file, tree in FILES.items():
        internal = [name for name in imports(tree) if name.startswith(tuple(inside))]
        assert not internal or file.startswith("arch/"), f"{file}: {internal}"


def test_who_opens_files_for_writing():
    assert {file for file, tree in FILES.items() if writes(tree)} == WRITE


@pytest.mark.parametrize(
    "code",
    [
        'open(p, "w")',
        'p.open("ab")',
        'p.open(mode="r+b")',
        'io.open(p, "xb")',
        "os.open(p, os.O_RDONLY | os.O_CREAT)",
        "os.open(p, os.O_WRONLY)",
        "p.write_text(s)",
        "p.write_bytes(s)",
        "shutil.copyfile(a, b)",
        "tempfile.NamedTemporaryFile()",
        "save_file(t, p)",
    ],
)
def test_writing_is_recognised(code):
    assert writes(ast.parse(code)) == [code.replace('"', "'")]


@pytest.mark.parametrize(
    "code", ["open(p)", 'p.open("rb")', "os.open(p, os.O_RDONLY)", "os.open(os.devnull, os.O_WRONLY)"]
)
def test_reading_is_not_taken_for_writing(code):
    assert not writes(ast.parse(code))


def loaded_by(*arguments: str) -> set[str]:
    """Top-level modules that a fresh interpreter has imported at its end."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True, cwd=ROOT
    )
    names = [line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if line.startswith("import time:")]
    return {name.split(".")[0] for name in names}


def test_a_start_is_light():
    light = [file for file in FILES if unit_of(file) != A_RUN or file == "training/__init__.py"]
    import_all = f"import {', '.join(sorted(module_name(file) for file in light if file != '__main__.py'))}"
    for arguments in (["-c", "import suture"], ["-m", "suture", "--help"], ["-c", import_all]):
        loaded = loaded_by(*arguments)
        assert "suture" in loaded
        assert not loaded & HEAVY, arguments


def module_name(file: str) -> str:
    return ".".join(["suture", *file.removesuffix(".py").split("/")]).removesuffix(".__init__")


FOLDERS = ("src", "tests", "demo", "benchmarks", "fuzz", "tools")
SOURCES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_budgets(path):
    text = path.read_text(encoding="utf-8")
    n_lines = text.count("\n")
    assert n_lines <= 400, "a file has at most 400 lines"
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions}
    assert not {name: lines for name, lines in lengths.items() if lines > 50}, "a function has at most 50 lines"

"""The layer rule, read from the imports of every module; and what fresh processes load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "nsa_codegen"
# A module imports only modules before it. The package's own __init__ only points at names.
LAYERS = (
    "errors", "outputs", "index_sets", "sizes", "program", "spec", "desc", "target", "needed", "occupancy", "schedule",
    "tiling",
    "pairs", "runs", "splits", "together", "source", "manifest", "store", "compiler", "nvcc", "sass", "resources",
    "workarounds", "reference", "ops", "templates", "lowering_cpu", "lowering_gpu", "lowering", "binaries", "build",
    "selection", "requests", "executor", "emitted", "device", "pages", "dispatch", "calls", "checks",
    "sequence", "plan",
    "inference", "repeated", "autograd", "training", "conformance", "functional", "cache", "nn", "demo", "bench",
    "tuning", "cli",
)  # fmt: skip
WITHOUT_TORCH = LAYERS[: LAYERS.index("reference")]
KERNEL_LIBRARIES = {"tilelang", "tvm", "tvm_ffi", "triton"}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(text: str, module: str) -> set[str]:
    """Return the full names that `text`, the module called `module`, imports anywhere, also inside functions."""
    package = module.split(".")
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def module_name(path: Path) -> str:
    """Return the name by which relative imports count: that of a package's __init__ has the package below it."""
    return ".".join(("nsa_codegen", *path.relative_to(PACKAGE).with_suffix("").parts))


def layers_imported(path: Path) -> set[str]:
    names = imported_names(path.read_text(), module_name(path))
    return {name.split(".")[1] for name in names if name.startswith("nsa_codegen.")}


def test_the_parser_sees_every_form_of_import():
    text = "import a.b\nfrom .x import y\nfrom ..p import q as r\nfrom . import z\ndef f():\n    from c import d\n"
    assert imported_names(text, "nsa_codegen.sub.mod") == {
        "a.b", "nsa_codegen.sub.x.y", "nsa_codegen.p.q", "nsa_codegen.sub.z", "c.d",
    }  # fmt: skip


def test_every_module_has_a_layer():
    assert {layer_of(p) for p in MODULES} == set(LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_layers_before_its_own(path):
    own = LAYERS.index(layer_of(path))
    later = {name for name in layers_imported(path) if name in LAYERS and LAYERS.index(name) > own}
    assert not later, f"{path.name} is in layer {LAYERS[own]!r} and imports {sorted(later)}, which come after it"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_kernel_libraries_and_torch_stay_in_their_layers(path):
    names = imported_names(path.read_text(), module_name(path))
    roots, layer = {name.split(".")[0] for name in names}, layer_of(path)
    if any(name.startswith("tilelang.language") for name in names):
        assert layer == "templates"
    if roots & KERNEL_LIBRARIES:
        assert layer in ("workarounds", "templates", "lowering_cpu", "lowering_gpu", "lowering", "device")
    if "torch" in roots:
        assert layer not in WITHOUT_TORCH


def loaded_after(statement: str) -> set[str]:
    """Return the modules that a fresh process has loaded after `statement`; it must print nothing."""
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == ""
    return set(done.stderr.split())


def test_the_declaration_needs_the_standard_library_only():
    loaded = loaded_after("from nsa_codegen import NSASpec; str(NSASpec.paper().program())")
    assert not loaded & {"torch", "numpy", "typer", "rich", *KERNEL_LIBRARIES}


@pytest.mark.parametrize(
    "statement",
    [
        "import nsa_codegen.reference",
        "import nsa_codegen.ops",
        "import nsa_codegen.functional",
        "from nsa_codegen import NSA, NSASpec, functional",
        "import nsa_codegen.cli",
    ],
)
def test_a_fresh_process_loads_no_kernel_library(statement):
    assert not loaded_after(statement) & KERNEL_LIBRARIES


def test_what_most_calls_do_without_is_not_loaded():
    """The executor, the reader of SASS, and what lowers are imported where they are used."""
    loaded = loaded_after("from nsa_codegen import NSA, NSASpec, functional")
    assert "nsa_codegen.dispatch" in loaded
    assert not [name for name in loaded if name.startswith("nsa_codegen.executor")]
    assert not loaded & {"nsa_codegen.sass", "nsa_codegen.resources", "nsa_codegen.conformance", "nsa_codegen.lowering"}


@pytest.mark.parametrize("module", ["cli", "requests", "build"])
def test_what_a_build_of_stored_kernels_runs_loads_no_torch(module):
    assert "torch" not in loaded_after(f"import nsa_codegen.{module}")


def test_importing_writes_nothing(tmp_path):
    code = "from nsa_codegen import NSA, NSASpec, functional; import nsa_codegen.cli"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "NSA_CODEGEN_HOME": str(tmp_path / "store")}
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []

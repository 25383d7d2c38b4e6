"""The installed package: the wheel works elsewhere on the disk, and a warm model needs no TileLang.

The wheel's environment borrows torch and the rest from this one, but not this checkout.
"""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import nsa_codegen

ROOT = Path(__file__).parents[2]
# Makes every import of a kernel library fail, as on a machine that has none.
WITHOUT_TILELANG = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tilelang", "tvm", "tvm_ffi"):
            raise ModuleNotFoundError(f"No module named {name!r} (refused)", name=name)
sys.meta_path.insert(0, Refuse())
"""
MODEL = """
import torch
from nsa_codegen import NSA
torch.manual_seed(0)
model = NSA.build(embed_dim=24, hidden_size=32, num_heads=2, head_dim=8, num_layers=2, window_size=8, block_size=8,
                  num_selected_blocks=2, dropout=0.0, impl="compiled")
x = torch.randn(2, 33, 24)
out = model(x)
out.square().sum().backward()
torch.save([out.detach(), *(p.grad for p in model.parameters())], PATH)
"""


def run(command, cwd, **environment):
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    run(pip, folder, PIP_DISABLE_PIP_VERSION_CHECK="1")
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return the folder of programs of a fresh environment with the wheel in it."""
    root = tmp_path_factory.mktemp("elsewhere")
    run([sys.executable, "-m", "venv", "--system-site-packages", root / "venv"], root)
    programs = root / "venv" / "bin"
    run([programs / "python", "-m", "pip", "install", "--no-deps", "--no-index", wheel], root)
    # A .pth line adds the folder to the path, and does not run the .pth files in it: not this checkout's.
    (site,) = (root / "venv" / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return programs


def test_the_wheel_carries_what_is_not_python(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    others = ("runtime/pool.cpp", "bench/peak.cpp", "templates/cpu/tile/product.h", "py.typed")
    for name in ("schedules/fallback.toml", *others):
        assert f"nsa_codegen/{name}" in names
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "nsa_codegen").rglob("*.py")}
    assert modules <= names
    assert not [n for n in names if not n.startswith(("nsa_codegen/", "nsa_codegen-"))]
    assert not [n for n in names if n.endswith((".so", ".pyc"))]


def test_the_version_is_the_wheels(wheel):
    assert wheel.name.split("-")[1] == nsa_codegen.__version__


def test_the_wheel_works_elsewhere(installed, tmp_path):
    store = tmp_path / "store"
    facts = json.loads(run([installed / "nsa-codegen", "env", "--json"], tmp_path, NSA_CODEGEN_HOME=str(store)).stdout)
    assert facts["store"] == str(store) and not store.exists()
    assert facts["schedules"].startswith(str(installed.parent))
    code = (
        "import torch, nsa_codegen; from nsa_codegen import functional as f\n"
        "q = torch.randn(1, 20, 2, 8); a, b = (f.window_attention(q, q, q, window_size=5, impl=i)[0] for i in "
        "('compiled', 'reference'))\n"
        "assert torch.allclose(a, b, atol=1e-5), (a - b).abs().max()\n"
        "print(nsa_codegen.__file__)"
    )
    done = run([installed / "python", "-c", code], tmp_path, NSA_CODEGEN_HOME=str(store))
    assert done.stdout.strip().startswith(str(installed.parent))
    assert list(store.glob("*/stream_attention_fwd/*/manifest.json"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store"]


def test_without_a_home_an_installed_package_uses_the_users_cache(installed, tmp_path):
    environment = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "NSA_CODEGEN_HOME": ""}
    facts = json.loads(run([installed / "nsa-codegen", "env", "--json"], tmp_path, **environment).stdout)
    assert facts["store"] == str(tmp_path / "cache" / "nsa_codegen")
    assert list(tmp_path.iterdir()) == []


def test_a_warm_model_trains_without_tilelang(tmp_path):
    environment = {"NSA_CODEGEN_HOME": str(tmp_path / "store")}
    cold, warm = tmp_path / "cold.pt", tmp_path / "warm.pt"
    run([sys.executable, "-c", f"PATH = {str(cold)!r}\n{MODEL}"], tmp_path, **environment)
    script = f"PATH = {str(warm)!r}\n{WITHOUT_TILELANG}\n{MODEL}"
    run([sys.executable, "-c", script], tmp_path, **environment, NSA_CODEGEN_NO_BUILD="1")
    import torch

    assert all(torch.equal(a, b) for a, b in zip(torch.load(cold), torch.load(warm), strict=True))


def test_the_refusal_of_tilelang_bites(tmp_path):
    """Without stored kernels the same process must fail, or the test above shows nothing."""
    code = f"PATH = {str(tmp_path / 'x.pt')!r}\n{WITHOUT_TILELANG}\n{MODEL}"
    environment = {**os.environ, "NSA_CODEGEN_HOME": str(tmp_path / "store")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode != 0 and "refused" in done.stderr

"""Which nvcc is used, and what is said when there is none or it fails; with scripts in its place, so none is needed."""

import importlib.metadata
from pathlib import Path

import pytest

from nsa_codegen import nvcc
from nsa_codegen.errors import CompilerError, TargetError
from nsa_codegen.nvcc import compile_cubin, emit_ptx, find_nvcc, report_path, tilelang_includes
from nsa_codegen.target import GPU_TARGETS

SM_80 = GPU_TARGETS["sm_80"]
REPORT = """\
kernel.cu(3): warning: unused
    float longer;
          ^
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k' for 'sm_80'
ptxas info    : Function properties for k
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
ptxas info    : Compile time = 12.5 ms
"""
# Answers --version, and otherwise writes what it was asked, and its own arguments, to the file after -o.
SCRIPT = """\
#!/bin/sh
[ "$1" = --version ] && echo "Cuda compilation tools, release 13.0, V13.0.{number}" && exit 0
case "$*" in *--dryrun*) exit 1;; esac
echo "$*" > {log}
{body}
while [ "$1" != -o ]; do shift; done
cp kernel.cu "$2"
cat <<'END'
{report}END
"""


def fake_nvcc(folder: Path, *, number: int = 1, body: str = "", report: str = REPORT) -> Path:
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SCRIPT.format(number=number, log=folder / "arguments", body=body, report=report))
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def no_toolkit(monkeypatch, tmp_path):
    """A machine without any nvcc, with a host compiler and TileLang's headers."""
    monkeypatch.delenv("NSA_CODEGEN_NVCC", raising=False)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(nvcc, "_TOOLKIT", tmp_path / "none")
    empty = tmp_path / "path"
    empty.mkdir()
    (empty / "g++").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", f"{empty}:/bin:/usr/bin")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    for name, variable in (("src", "TL_TEMPLATE_PATH"), ("cutlass", "TL_CUTLASS_PATH")):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setattr(importlib.metadata, "files", missing)


def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)


def test_without_any_the_error_names_every_place():
    with pytest.raises(CompilerError) as caught:
        find_nvcc()
    for word in ("NSA_CODEGEN_NVCC", "CUDA_HOME", "PATH", "nvidia-cuda-nvcc", "tilelang[nvcc]"):
        assert word in str(caught.value)


def test_each_place_comes_before_the_next(monkeypatch, tmp_path):
    packaged = fake_nvcc(tmp_path / "site", number=5)

    class File:
        name = "nvcc"

        @staticmethod
        def locate():
            return packaged

    monkeypatch.setattr(importlib.metadata, "files", lambda name: [File] if name == "nvidia-cuda-nvcc" else None)
    assert find_nvcc().path == packaged and find_nvcc().version == "V13.0.5"
    monkeypatch.setattr(nvcc, "_TOOLKIT", tmp_path / "toolkit")
    fake_nvcc(tmp_path / "toolkit", number=4)
    assert find_nvcc().version == "V13.0.4"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    fake_nvcc(tmp_path / "home", number=3)
    assert find_nvcc().version == "V13.0.3" and find_nvcc().home == tmp_path / "home"
    monkeypatch.setenv("PATH", f"{fake_nvcc(tmp_path / 'on_path', number=2).parent}:/bin:/usr/bin")
    assert find_nvcc().version == "V13.0.2"
    monkeypatch.setenv("NSA_CODEGEN_NVCC", str(fake_nvcc(tmp_path / "asked", number=1)))
    assert find_nvcc().version == "V13.0.1"


def test_a_link_stands_for_the_nvcc_inside_its_toolkit(monkeypatch, tmp_path):
    real = fake_nvcc(tmp_path / "toolkit")
    (tmp_path / "toolkit" / "include").mkdir()
    (tmp_path / "toolkit" / "include" / "cuda_runtime.h").touch()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "nvcc").symlink_to(real)
    monkeypatch.setenv("NSA_CODEGEN_NVCC", str(tmp_path / "links" / "nvcc"))
    assert find_nvcc().path == real and find_nvcc().home == tmp_path / "toolkit"


@pytest.mark.parametrize("variable", ["NSA_CODEGEN_NVCC", "CUDA_HOME"])
def test_a_variable_that_names_none_is_an_error(monkeypatch, tmp_path, variable):
    monkeypatch.setattr(nvcc, "_TOOLKIT", tmp_path / "toolkit")
    fake_nvcc(tmp_path / "toolkit")
    monkeypatch.setenv(variable, str(tmp_path / "nowhere"))
    with pytest.raises(CompilerError, match=rf"\${variable} = .*nowhere"):
        find_nvcc()


@pytest.mark.parametrize("variable", ["TL_TEMPLATE_PATH", "TL_CUTLASS_PATH"])
def test_headers_that_are_missing_are_named(monkeypatch, tmp_path, variable):
    monkeypatch.setenv(variable, str(tmp_path / "nowhere"))
    with pytest.raises(CompilerError, match="nowhere"):
        tilelang_includes()


def test_a_cubin_is_made_with_tilelangs_flags(monkeypatch, tmp_path):
    monkeypatch.setenv("NSA_CODEGEN_NVCC", str(fake_nvcc(tmp_path / "asked")))
    cubin = compile_cubin("the text", SM_80, tmp_path)
    assert cubin == tmp_path / "kernel.cubin" and cubin.read_text() == "the text"
    words = (tmp_path / "asked" / "arguments").read_text().split()
    expected = {
        "--cubin", "-O3", "-std=c++20", "-arch=sm_80", "-Xptxas=-v", f"-ccbin={tmp_path}/path/g++",
        f"-I{tmp_path}/src", f"-I{tmp_path}/cutlass", "-o", "kernel.cubin", "kernel.cu",
    }  # fmt: skip
    assert set(words) == expected  # no fast math, no line information
    compile_cubin("the text", SM_80, tmp_path, lineinfo=True)
    assert set((tmp_path / "asked" / "arguments").read_text().split()) == expected | {"-lineinfo"}


def test_only_the_assemblers_report_is_kept_and_nothing_else_is_left(monkeypatch, tmp_path):
    monkeypatch.setenv("NSA_CODEGEN_NVCC", str(fake_nvcc(tmp_path / "asked")))
    (tmp_path / "out").mkdir()
    cubin = compile_cubin("the text", SM_80, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"kernel.cubin", report_path(cubin).name}
    lines = report_path(cubin).read_text().splitlines()
    assert lines == REPORT.splitlines()[3:8]


def test_a_failure_tells_the_command_and_the_first_lines(monkeypatch, tmp_path):
    failing = 'for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do echo "kernel.cu($i): error"; done; exit 2'
    monkeypatch.setenv("NSA_CODEGEN_NVCC", str(fake_nvcc(tmp_path / "asked", body=failing)))
    with pytest.raises(CompilerError) as caught:
        compile_cubin("the text", SM_80, tmp_path)
    lines = str(caught.value).splitlines()
    assert "ended with status 2" in lines[0] and "-arch=sm_80" in lines[0]
    assert lines[1] == "kernel.cu(1): error" and lines[-1] == "... and 2 more lines"
    assert not (tmp_path / "kernel.cubin").exists()


def test_a_slow_compiler_is_ended(monkeypatch, tmp_path):
    monkeypatch.setenv("NSA_CODEGEN_NVCC", str(fake_nvcc(tmp_path / "asked", body="sleep 60")))
    with pytest.raises(CompilerError, match=r"took more than 0\.3 s"):
        compile_cubin("the text", SM_80, tmp_path, seconds=0.3)


def test_without_a_host_compiler_the_error_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("NSA_CODEGEN_NVCC", str(fake_nvcc(tmp_path / "asked")))
    monkeypatch.setenv("CXX", str(tmp_path / "nowhere"))
    with pytest.raises(CompilerError, match="nvcc needs a host compiler"):
        compile_cubin("the text", SM_80, tmp_path)


def test_ptx_is_returned_as_text(monkeypatch, tmp_path):
    monkeypatch.setenv("NSA_CODEGEN_NVCC", str(fake_nvcc(tmp_path / "asked")))
    assert emit_ptx("the text", SM_80) == "the text"
    assert "--ptx" in (tmp_path / "asked" / "arguments").read_text()


@pytest.mark.parametrize("name", ["gfx942", "gfx950"])
def test_amds_targets_are_source_only(tmp_path, name):
    with pytest.raises(TargetError, match=f"not for {name}.*source only"):
        compile_cubin("the text", GPU_TARGETS[name], tmp_path)

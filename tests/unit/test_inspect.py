"""`inspect` on GPU targets: stages, figures, and differences; lowering and compiling stand in for themselves."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from nsa_codegen import selection
from nsa_codegen.cli import app, stages
from nsa_codegen.cli.figures import resource_figures
from nsa_codegen.cli.stages import STAGES
from nsa_codegen.occupancy import occupancy
from nsa_codegen.resources import Resources
from nsa_codegen.sass import Instructions
from nsa_codegen.schedule import GpuSchedule, ScheduleSpace
from nsa_codegen.selection import Selected
from nsa_codegen.source import KernelLaunch

KERNEL = ["combine", "--num-heads", "2", "--head-dim", "16"]
SCHEDULES = {"sm_80": GpuSchedule(), "sm_90a": GpuSchedule(rows=128, key_tile=128), "gfx942": GpuSchedule()}
COUNTED = Instructions(
    total=900, opcodes={"HMMA.16816.F32": 64, "LDGSTS.E.BYPASS.128": 16, "LDG.E": 2}, main_opcodes={"LDG.E": 2}
)


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["inspect", *arguments])
    assert result.exit_code == code, result.output
    return result


def failure(*arguments):
    result = run(*arguments, code=1)
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    return line


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch, tmp_path):
    """Texts that name the target and schedule, and resources whose registers are the schedule's rows."""
    monkeypatch.setenv("NSA_CODEGEN_HOME", str(tmp_path / "store"))
    real = selection.select

    def select(desc, target):
        if target.name not in SCHEDULES:
            return real(desc, target)
        return Selected(schedule=SCHEDULES[target.name], source="a row")

    def lower(desc, schedule, target):
        text = f"// {desc}\n// {target.name}\n// {schedule}\nend\n"
        launch = KernelLaunch(kernel="k", threads=schedule.threads, shared_bytes=1024 * schedule.stages)
        return SimpleNamespace(text=text, host=f"host of {target.name}", launches=(launch,))

    def source_resources(cubin, source, target):
        (launch,) = source.launches
        threads, shared_bytes = launch.threads, launch.shared_bytes
        registers = int(cubin.partition("rows=")[2].split()[0])
        fits = occupancy(target, threads=threads, registers=registers, shared_bytes=shared_bytes)
        return Resources(
            kernel="k", target=target.name, registers=registers, spill_store_bytes=8, spill_load_bytes=4,
            stack_bytes=16, static_shared_bytes=0, shared_bytes=shared_bytes, barriers=1, threads=threads,
            blocks_per_processor=fits.blocks, occupancy=fits.fraction, limited_by=fits.limited_by, instructions=COUNTED,
        )  # fmt: skip

    monkeypatch.setattr(selection, "select", select)
    monkeypatch.setattr(stages, "lower", lower)
    monkeypatch.setattr(stages, "compile_cubin", lambda text, target, folder: text)
    monkeypatch.setattr(stages, "source_resources", source_resources)
    monkeypatch.setattr(stages, "emit_ptx", lambda text, target: f"ptx for {target.name}\n{text}")
    monkeypatch.setattr(stages, "disassemble", lambda cubin: f"sass\n{cubin}")
    monkeypatch.setattr(ScheduleSpace, "check", classmethod(lambda cls, schedule, desc, target: None))


@pytest.mark.parametrize(
    ("stage", "shown"),
    [
        ("schedule", "rows=64 key_tile=64 stages=2 threads=128\nfrom      a row"),
        ("cuda", "// sm_80\n// rows=64"),
        ("host", "host of sm_80"),
        ("ptx", "ptx for sm_80\n// combine"),
        ("sass", "sass\n// combine"),
    ],
)
def test_a_text_of_every_stage(stage, shown):
    assert shown in run(*KERNEL, "--target", "sm_80", "--stage", stage).stdout


def test_without_a_stage_the_emitted_text_is_shown():
    assert "// sm_80\n" in run(*KERNEL, "--target", "sm_80").stdout
    assert "// gfx942\n" in run(*KERNEL, "--target", "gfx942").stdout


def test_tensors_on_a_gpu_have_16_bits_by_default():
    assert "combine_fwd(bfloat16," in run(*KERNEL, "--target", "sm_80", "--stage", "schedule").stdout
    assert "combine_fwd(float32," in run(*KERNEL, "--stage", "schedule").stdout
    assert "combine_fwd(float16," in run(*KERNEL, "--target", "sm_80", "--dtype", "float16").stdout


@pytest.mark.parametrize(
    ("target", "stage"),
    [("sm_80", "asm"), ("sm_80", "source"), ("gfx942", "ptx"), ("gfx942", "resources"), ("x86_64_v3", "sass")],
)
def test_a_stage_of_another_target_is_refused_with_the_targets_own(target, stage):
    kind = {"sm": "cuda", "gf": "hip", "x8": "cpu"}[target[:2]]
    said = failure(*KERNEL, "--target", target, "--stage", stage)
    assert f"inspect.stage = '{stage}' is not one of {target}'s" in said
    assert ", ".join(STAGES[kind]) in said


def test_resources_are_a_table():
    lines = run(*KERNEL, "--target", "sm_80", "--stage", "resources").stdout.splitlines()
    rows = {line[:28].strip(): line[28:].strip() for line in lines}
    assert rows["registers"] == "64" and rows["spill bytes"] == "12" and rows["shared bytes"] == "2048"
    assert rows["matrix"] == "64" and rows["async copy"] == "16" and rows["global load"] == "2"
    assert rows["blocks per multiprocessor"] == "8" and rows["limited by"] == "registers"


def test_resources_of_several_kernels_are_a_row_each():
    text = run("stream_attention", *KERNEL[1:], "--target", "sm_80", "--stage", "resources").stdout
    assert sum(line.strip().startswith("stream_attention_fwd(") for line in text.splitlines()) == 2
    assert "registers" in text and "2 kernels" in text


def test_resources_as_json_are_those_of_the_manifest():
    (item,) = json.loads(run(*KERNEL, "--target", "sm_80", "--stage", "resources", "--json").stdout)
    assert item["target"] == "sm_80" and item["schedule"] == GpuSchedule().to_json()
    found = Resources.from_json(item["resources"])
    assert (found.registers, found.spill_bytes, found.instructions) == (64, 12, COUNTED)
    assert item["resources"]["spill_bytes"] == 12


def test_occupancy_shows_the_limits_and_which_binds():
    text = run(*KERNEL, "--target", "sm_80", "--stage", "occupancy").stdout
    (binding,) = (line for line in text.splitlines() if "<- binds" in line)
    assert binding.split()[:4] == ["registers", "8192", "65536", "8"]
    assert "50.0 % of the warps: 8 blocks of 128 threads, by registers" in text
    bar = text.strip().splitlines()[-1].split()[0]
    assert bar.count("#") == bar.count(".") == len(bar) / 2
    (item,) = json.loads(run(*KERNEL, "--target", "sm_80", "--stage", "occupancy", "--json").stdout)
    assert item["occupancy"]["blocks"] == 8 and item["occupancy"]["fraction"] == 0.5
    assert [limit["limit"] for limit in item["occupancy"]["limits"] if limit["binds"]] == ["registers"]


def test_a_text_is_compared_with_another_target():
    lines = run(*KERNEL, "--target", "sm_80", "--diff", "sm_90a").stdout.splitlines()
    assert lines[0] == f"--- sm_80 {SCHEDULES['sm_80']}" and lines[1] == f"+++ sm_90a {SCHEDULES['sm_90a']}"
    assert "-// sm_80" in lines and "+// sm_90a" in lines and " end" in lines


def test_a_text_is_compared_with_another_schedule():
    text = run(*KERNEL, "--target", "sm_80", "--diff", "rows=128,stages=3").stdout
    assert "+// rows=128 key_tile=64 stages=3 threads=128" in text and " // sm_80" in text
    (item,) = json.loads(run(*KERNEL, "--target", "sm_80", "--diff", "stages=3", "--json").stdout)
    assert "+// rows=64 key_tile=64 stages=3" in item["diff"] and item["text"].startswith("// combine_fwd")


def test_no_difference_is_said():
    assert run(*KERNEL, "--target", "sm_80", "--diff", "sm_80").stdout == "no difference\n"


def test_figures_are_compared_side_by_side():
    text = run(*KERNEL, "--target", "sm_80", "--stage", "resources", "--diff", "sm_90a").stdout
    (row,) = (line.split() for line in text.splitlines() if line.strip().startswith("registers "))
    assert row == ["registers", "64", "128", "+64"]
    text = run(*KERNEL, "--target", "sm_80", "--stage", "occupancy", "--diff", "rows=128").stdout
    assert "8 (8192 of 65536) <- binds" in text and "4 (16384 of 65536) <- binds" in text
    (item,) = json.loads(
        run(*KERNEL, "--target", "sm_80", "--stage", "resources", "--diff", "rows=96", "--json").stdout
    )
    assert item["resources"]["registers"] == 64 and item["other"]["resources"]["registers"] == 96
    assert item["other"]["schedule"]["rows"] == 96


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("sm_90", "did you mean 'sm_90a'"),
        ("rows=many", "fields of the schedule with integers, like rows=128,stages=3"),
        ("row=64", "did you mean 'rows'"),
    ],
)
def test_what_it_is_compared_with_must_be_known(wanted, said):
    assert said in failure(*KERNEL, "--target", "sm_80", "--diff", wanted)


def test_a_program_has_no_difference():
    assert "has no --diff" in failure(*KERNEL, "--target", "sm_80", "--stage", "program", "--diff", "sm_90a")


def test_the_other_target_must_have_the_stage():
    assert "gfx942's; it has" in failure(*KERNEL, "--target", "sm_80", "--stage", "ptx", "--diff", "gfx942")


def test_uncounted_instructions_are_said_to_be_so(monkeypatch):
    counted = stages.source_resources
    monkeypatch.setattr(stages, "source_resources", lambda *a, **k: replace(counted(*a, **k), instructions=None))
    text = run(*KERNEL, "--target", "sm_80", "--stage", "resources").stdout
    assert "not counted: no nvdisasm (pip install 'nsa_codegen[gpu]')" in text
    figures = resource_figures(Resources.from_json(json.loads(
        run(*KERNEL, "--target", "sm_80", "--stage", "resources", "--json").stdout)[0]["resources"]
    ))  # fmt: skip
    assert figures["matrix"] is None and figures["registers"] == 64

"""What is tuned: every kernel that the presets run, each with the forward it belongs to, at sizes that it can have."""

import pytest

from nsa_codegen.conformance.check import has_backward
from nsa_codegen.errors import InputError
from nsa_codegen.needed import backward_descs, needed_descs
from nsa_codegen.ops import OPS
from nsa_codegen.schedule import ScheduleSpace
from nsa_codegen.spec import NSASpec
from nsa_codegen.target import parse_target
from nsa_codegen.tuning.environment import environment
from nsa_codegen.tuning.problems import GRID_DIMS, GRID_GROUPS, chosen_problems, grid_problems, preset_problems
from nsa_codegen.tuning.space import Space, default_schedule, reason_kind

PLACES = [("x86_64_v4", "float32"), ("sm_90a", "bfloat16")]


def test_a_log_says_what_was_compiled():
    said = {name: environment(parse_target(name), "static") for name in ("sm_90a", "gfx942")}
    assert said["sm_90a"]["gpu"] == "none: compiled for its architecture, not run"
    assert said["gfx942"]["gpu"] == "none: source only, neither compiled nor run"
    assert said["sm_90a"]["compiler"].startswith("nvcc") and said["gfx942"]["compiler"] == "none: source only"


@pytest.mark.parametrize(("name", "dtype"), PLACES)
@pytest.mark.parametrize("preset", ["seed", "paper"])
def test_every_kernel_of_a_preset_is_a_problem(preset, name, dtype):
    target = parse_target(name)
    problems = preset_problems(preset, target, dtype)
    program = getattr(NSASpec, preset)().program()
    assert [p.desc for p in problems] == list(needed_descs(program, dtype, target=target))
    for problem in problems:
        if problem.desc.direction == "bwd":
            assert problem.desc in backward_descs(problem.forward, target.kind)
            assert has_backward(problem.forward)
        else:
            assert problem.forward == problem.desc
        assert OPS[problem.forward.op].work(problem.forward, problem.sizes).bytes > 0


def preset_of_paper(target, dtype):
    return preset_problems("paper", target, dtype)


@pytest.mark.parametrize(("name", "dtype"), PLACES)
def test_the_grid_has_every_head_dim_with_every_group_once(name, dtype):
    """With those of the preset, whose own sizes are one of them, and which the grid leaves to it."""
    target = parse_target(name)
    descs = [p.desc for problems in (grid_problems, preset_of_paper) for p in problems(target, dtype)]
    assert len(descs) == len(set(descs))
    gathered = [d for d in descs if d.kind == "gather_attention_bwd" and d.word("part") != "sums"]  # that has no group
    found = {(d.size("dk"), d.size("dv"), d.size("group")) for d in gathered}
    assert found == {(dk, dv, group) for dk, dv in GRID_DIMS for group in GRID_GROUPS}


def test_a_gather_without_packing_is_timed_with_few_queries_on_a_cpu():
    problems = preset_problems("paper", parse_target("x86_64_v4"), "float32", direction="fwd")
    plain, packed = (next(p for p in problems if ("source", source) in p.desc.dims) for source in ("plain", "packed"))
    assert plain.sizes.tokens == 8 and plain.sizes.q_start == 4088 and plain.sizes.keys == 4096
    assert packed.sizes.tokens == packed.sizes.keys == 4096


def test_errors_are_looked_for_with_more_blocks_than_are_listed():
    for problem in preset_problems("paper", parse_target("sm_80"), "bfloat16"):
        dims = dict(problem.forward.dims)
        if "n" in dims:
            assert problem.checks[-1].q_start > dims["n"] * dims["block"]


def test_ops_are_chosen_by_name_or_kind():
    problems = preset_problems("seed", parse_target("x86_64_v4"), "float32")
    assert {p.desc.kind for p in chosen_problems(problems, ["combine"])} == {"combine_fwd", "combine_bwd"}
    assert {p.desc.kind for p in chosen_problems(problems, ["combine_bwd", "pack_blocks"])} == {
        "combine_bwd", "pack_blocks_fwd",
    }  # fmt: skip
    assert chosen_problems(problems, []) == problems
    with pytest.raises(InputError, match="did you mean 'combine'"):
        chosen_problems(problems, ["combin"])


@pytest.mark.parametrize("name", ["x86_64_v4", "sm_90a"])
def test_a_space_is_all_combinations_legal_and_refused_with_its_default_among_them(name):
    target = parse_target(name)
    for problem in preset_problems("paper", target, "bfloat16")[:12]:
        space = Space.of(problem.desc, target)
        assert space.raw == len(space.legal) + sum(space.refused.values())
        assert space.default in space.legal and space.default == default_schedule(problem.desc, target)
        assert all(ScheduleSpace.check(s, problem.desc, target) is None for s in space.legal)
        assert space.schedule(space.default.to_json()) == space.default


def test_reasons_that_differ_in_numbers_are_of_one_kind():
    one, other = "rows = 64 are less than the 16 heads of x86_64_v4", "rows = 8 are less than the 4 heads of x86_64_v4"
    assert reason_kind(one) == reason_kind(other) == "rows = # are less than the # heads of x86_64_v4"

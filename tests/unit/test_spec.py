"""`NSASpec` and `Program`: presets, refusals by message, printing, and costs against explicit counts."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_codegen.errors import NSAError, SpecError, UnknownOptionError
from nsa_codegen.index_sets import Bound, Range, RangeSet, TopK, causal, complete, everything, first, top_k, window
from nsa_codegen.needed import needed_descs
from nsa_codegen.program import Path, Phi, Program, Tokens
from nsa_codegen.sizes import MAX_SIZE
from nsa_codegen.spec import NSASpec
from nsa_codegen.target import TARGETS

SEED = {
    "num_heads": 8, "num_kv_heads": 8, "head_dim": 32, "value_dim": 32, "window_size": 64, "block_size": 16,
    "num_selected_blocks": 8, "num_initial_blocks": 0, "num_local_blocks": 1, "compression_kernel": 4,
    "compression_stride": 4, "compression": "mean", "selection": "mean_key", "gate": "scalar", "kv_per_path": False,
    "causal": True, "pool_queries": False,
}  # fmt: skip
PAPER = {
    "num_heads": 64, "num_kv_heads": 4, "head_dim": 192, "value_dim": 128, "window_size": 512, "block_size": 64,
    "num_selected_blocks": 16, "num_initial_blocks": 1, "num_local_blocks": 2, "compression_kernel": 32,
    "compression_stride": 16, "compression": "mlp", "selection": "compressed", "gate": "sigmoid",
    "kv_per_path": True, "causal": True, "pool_queries": False,
}  # fmt: skip


def test_presets_are_the_table_of_the_semantics() -> None:
    assert dataclasses.asdict(NSASpec.seed()) == SEED
    assert dataclasses.asdict(NSASpec.paper()) == PAPER
    assert NSASpec() == NSASpec.seed()
    assert (NSASpec.paper().group, NSASpec.seed().group) == (16, 1)


def test_overrides_keep_the_rest_of_the_preset() -> None:
    assert dataclasses.asdict(NSASpec.paper(window_size=128)) == {**PAPER, "window_size": 128}
    assert NSASpec.paper(head_dim=64, value_dim=None).dv == 64


def test_compression_ratio_sets_kernel_and_stride() -> None:
    for spec in (NSASpec.seed(compression_ratio=8), NSASpec.seed().replace(compression_ratio=8)):
        assert (spec.kernel, spec.stride) == (8, 8)
    paper = NSASpec.paper(compression_ratio=16)
    assert (paper.kernel, paper.stride) == (16, 16)
    alone = NSASpec.seed(compression_kernel=8)
    assert (alone.kernel, alone.stride) == (8, 8)


def test_replace_leaves_the_original_as_it_was() -> None:
    spec = NSASpec.seed()
    assert spec.replace(window_size=8).window_size == 8
    assert spec.window_size == 64
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.window_size = 3  # type: ignore[misc]


def refused(**options: object) -> str:
    with pytest.raises(SpecError) as error:
        NSASpec.seed(**options)
    return str(error.value)


@pytest.mark.parametrize("field", [name for name, value in SEED.items() if type(value) is int])
@pytest.mark.parametrize("value", [-1, 2.0, True, "8"])
def test_sizes_that_are_not_positive_integers(field: str, value: object) -> None:
    least = 0 if field == "num_initial_blocks" else 1
    assert refused(**{field: value}) == f"NSASpec.{field} = {value!r} is not allowed: it must be an integer >= {least}"


@pytest.mark.parametrize("field", [name for name, value in SEED.items() if type(value) is int and value > 0])
def test_sizes_of_zero(field: str) -> None:
    assert refused(**{field: 0}) == f"NSASpec.{field} = 0 is not allowed: it must be an integer >= 1"


@pytest.mark.parametrize("field", [name for name, value in SEED.items() if type(value) is int])
@pytest.mark.parametrize("value", [MAX_SIZE + 1, 2**31, 2**63])
def test_sizes_past_all_positions(field: str, value: int) -> None:
    message = refused(**{field: value})
    assert message.startswith(f"NSASpec.{field} = {value} is not allowed: it must be an integer from ")
    assert f" to {MAX_SIZE}, " in message


@pytest.mark.parametrize("bound", [{"offset": 2**31, "divisor": 1}, {"divisor": 2**63}, {"cap": -(2**32)}])
def test_numbers_of_ranges_past_all_positions(bound: dict[str, int]) -> None:
    visible = RangeSet(ranges=(Range(lo=Bound(cap=-(2**40)), hi=Bound(**bound)),))
    with pytest.raises(
        SpecError, match=r"^Path 'far': Bound\.\w+ = -?\d+ is not allowed: it must be an integer from -1"
    ):
        Path(name="far", visible=visible)
    Path(name="far", visible=window(MAX_SIZE))


@pytest.mark.parametrize("value", [1.5, "1", True])
def test_numbers_of_ranges_are_integers(value: object) -> None:
    with pytest.raises(SpecError, match=r"Bound\.offset = .* is not allowed: it must be an integer"):
        Bound(offset=value, divisor=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"num_kv_heads": 3}, ("NSASpec.num_kv_heads = 3", "num_heads = 8", "[1, 2, 4, 8]")),
        ({"compression": "max"}, ("NSASpec.compression = 'max'", "conv, mean, mlp")),
        ({"selection": "mean-key"}, ("NSASpec.selection = 'mean-key'", "did you mean 'mean_key'?")),
        ({"gate": "sigmiod"}, ("NSASpec.gate = 'sigmiod'", "did you mean 'sigmoid'?")),
        ({"causal": 1}, ("NSASpec.causal = 1", "True or False")),
        ({"kv_per_path": "yes"}, ("NSASpec.kv_per_path = 'yes'", "True or False")),
        ({"pool_queries": None}, ("NSASpec.pool_queries = None", "True or False")),
        (
            {"num_selected_blocks": 2, "num_initial_blocks": 1, "num_local_blocks": 2},
            ("NSASpec.num_selected_blocks = 2", "num_initial_blocks = 1", "num_local_blocks = 2", "at least 3"),
        ),
        (
            {"selection": "compressed", "block_size": 18},
            ("NSASpec.block_size = 18", "compression_stride = 4", "multiple of 4"),
        ),
        (
            {"selection": "compressed", "compression_kernel": 6, "compression_stride": 4},
            ("NSASpec.compression_kernel = 6", "compression_stride = 4", "multiple of 4"),
        ),
        (
            {"compression_kernel": 2, "compression_stride": 4},
            ("NSASpec.compression_kernel = 2", "compression_stride = 4", "kernel >= the stride"),
        ),
        (
            {"compression_ratio": 4, "compression_kernel": 8},
            ("NSASpec.compression_ratio = 4", "compression_kernel = 8", "give the ratio, or kernel and stride"),
        ),
        ({"compression_ratio": 0}, ("NSASpec.compression_ratio = 0", "integer >= 1")),
        ({"pool_queries": True}, ("NSASpec.pool_queries = True", "causal = True", "use causal=False")),
        (
            {"pool_queries": True, "causal": False, "compression_kernel": 8, "compression_stride": 4},
            ("NSASpec.pool_queries = True", "compression_kernel = 8", "compression_ratio"),
        ),
    ],
)
def test_refusals_name_field_value_and_what_is_allowed(options: dict[str, object], parts: tuple[str, ...]) -> None:
    message = refused(**options)
    for part in parts:
        assert part in message


class _Divided(int):
    """An integer that refuses to be divided more often than its divisors take to find."""

    divisions = 0

    def __mod__(self, other: int) -> int:
        self.divisions += 1
        assert self.divisions < 100_000
        return int(self) % other


def test_group_sizes_of_many_heads_are_named_at_once() -> None:
    with pytest.raises(SpecError, match=r"use one of \[1, 2, 4, .*, 268435456, 536870912\]"):
        NSASpec(num_heads=_Divided(2**29), num_kv_heads=3)
    with pytest.raises(SpecError, match=r"use one of \[1, 2, 3, 4, 6, 9, 12, 18, 36\]"):
        NSASpec(num_heads=36, num_kv_heads=5)


def test_combinations_that_only_look_wrong_are_allowed() -> None:
    NSASpec.seed(block_size=18)  # mean_key needs no division
    NSASpec.seed(pool_queries=True, causal=False)
    NSASpec.seed(num_selected_blocks=3, num_initial_blocks=1, num_local_blocks=2)
    NSASpec.seed(compression_ratio=4, compression_kernel=4, compression_stride=4)


@pytest.mark.parametrize("make", [NSASpec.seed, NSASpec.paper, NSASpec.seed().replace])
def test_unknown_options_are_refused_with_the_nearest_name(make: object) -> None:
    with pytest.raises(UnknownOptionError, match=r"no option 'windw_size': did you mean 'window_size'\?") as error:
        make(windw_size=3)  # type: ignore[operator]
    assert isinstance(error.value, NSAError)
    assert isinstance(error.value, TypeError)


def path(name: str = "only", **options: object) -> Path:
    return Path(name=name, visible=causal(), **options)  # type: ignore[arg-type]


def program(*paths: Path, **options: object) -> Program:
    return Program(**{"name": "p", "num_heads": 4, "head_dim": 8, "paths": paths, **options})  # type: ignore[arg-type]


SCORED = Path(name="sel", visible=top_k("compressed", n=2, block=8, source="cmp"))


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: path("not a name"), ("Path.name = 'not a name'", "identifier")),
        (lambda: path(7), ("Path.name = 7", "identifier")),  # type: ignore[arg-type]
        (lambda: Path(name="x", visible="window"), ("Path.visible = 'window'", "top_k()")),  # type: ignore[arg-type]
        (lambda: path(keys=None), ("Path.keys = None", "Tokens()")),
        (lambda: path(keys=Phi), ("Path.keys = <class", "Phi(kernel=..., stride=...)")),
        (lambda: path(pool_queries=True), ("Path.pool_queries = True", "kernel and stride must be equal")),
        (lambda: path(pool_queries=True, keys=Phi(kernel=8, stride=4)), ("Path.pool_queries", "phi_mean(l=8, d=4)")),
        (
            lambda: Path(name="x", visible=top_k("mean_key", n=1, block=4), keys=Phi(kernel=4, stride=4)),
            ("Path.keys = phi_mean(l=4, d=4)", "use keys=Tokens()"),
        ),
        (lambda: Phi(method="median", kernel=4, stride=4), ("Phi.method = 'median'", "mean")),
        (
            lambda: Path(name="only", visible=top_k("mean_key", n=2**31, block=4)),
            ("Path 'only': TopK.n = 2147483648", "integer"),
        ),
        (lambda: Phi(kernel=2**31, stride=4), ("Phi.kernel = 2147483648", "integer from 1 to 1073676288")),
        (lambda: Phi(kernel=0, stride=4), ("Phi.kernel = 0", "integer >= 1")),
        (lambda: program(), ("Program.paths = []", "at least one path")),
        (lambda: program("only"), ("Program.paths = ('only',)", "tuple of Path")),  # type: ignore[arg-type]
        (lambda: program(paths=path()), ("Program.paths = Path(", "tuple of Path")),
        (lambda: program(path(), path(), combine="scalar"), ("Program.paths = ['only', 'only']", "its own name")),
        (lambda: program(path(), combine="scalar"), ("Program.combine = 'scalar'", "1 path(s)", "'none'")),
        (lambda: program(path("a"), path("b")), ("Program.combine = 'none'", "2 path(s)", "'sigmoid'")),
        (lambda: program(path(), combine="sum"), ("Program.combine = 'sum'", "none, scalar, sigmoid")),
        (lambda: program(path(), num_kv_heads=3), ("Program.num_kv_heads = 3", "[1, 2, 4]")),
        (lambda: program(path(), head_dim=0), ("Program.head_dim = 0", "integer >= 1")),
        (lambda: program(SCORED), ("TopK.source = 'cmp'", "path 'sel'", "none")),
        (
            lambda: program(path("cmp"), SCORED, combine="scalar"),
            ("TopK.source = 'cmp'", "keys through phi"),
        ),
        (
            lambda: program(path("cmp", keys=Phi(kernel=3, stride=3)), SCORED, combine="scalar"),
            ("Program.block = 8", "stride = 3", "multiple of 3"),
        ),
    ],
)
def test_programs_are_refused_by_field(make: object, parts: tuple[str, ...]) -> None:
    with pytest.raises(SpecError) as error:
        make()  # type: ignore[operator]
    for part in parts:
        assert part in str(error.value)


def test_a_list_of_paths_is_a_tuple_of_them() -> None:
    assert program(paths=[path()]) == program(path())
    assert hash(program(paths=[path()])) == hash(program(path()))


def test_looking_up_a_path_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(SpecError, match=r"no path 'windw'; it has \['compressed', 'selected', 'window'\]"):
        NSASpec.seed().program().path("windw")


def test_program_prints_readably() -> None:
    assert str(NSASpec.paper().program()).splitlines() == [
        "program nsa: 64 heads on 4 key/value heads (G=16), Dk=192, Dv=128",
        "  path compressed: softmax over phi_mlp(l=32, d=16) in [0, (t-15)//16)",
        "  path selected: softmax over tokens in top_k(compressed, n=16, block=64, 1 initial, 2 local)",
        "  path window: softmax over tokens in [t-511, t+1)",
        "  combine O = g_compressed*O_compressed + g_selected*O_selected + g_window*O_window  "
        "(one gate per token, head and path)",
    ]
    assert str(program(path())) == (
        "program p: 4 heads on 4 key/value heads (G=1), Dk=8, Dv=8\n  path only: softmax over tokens in [0, t+1)"
    )


def test_pooling_is_in_the_printed_program() -> None:
    text = str(NSASpec.seed(causal=False, pool_queries=True).program())
    assert "path compressed: softmax over phi_mean(l=4, d=4) in [0, end), queries pooled" in text


@pytest.mark.parametrize(("tokens", "counted"), [(8192, 2048), (16384, 2560), (32768, 3584), (65536, 5632)])
def test_keys_attended_are_those_that_the_paper_counts(tokens: int, counted: int) -> None:
    """`floor((s-l)/d)+1 + n*l' + w`; the paper counts `s/d` compressed tokens, one more than are complete."""
    spec = NSASpec.paper()
    compressed, selected, recent = spec.program().paths
    t = tokens - 1
    seen = [
        compressed.visible.count(t, compressed.keys.length(tokens)),
        selected.visible.count(t, tokens),
        recent.visible.count(t, tokens),
    ]
    assert seen == [(tokens - 32) // 16 + 1, 16 * 64, 512]
    assert sum(seen) == counted - (spec.kernel // spec.stride - 1)


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 90),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 1)]),
    stride=st.sampled_from([2, 4]),
    windows=st.integers(1, 3),
    selection=st.sampled_from(["mean_key", "compressed"]),
    is_causal=st.booleans(),
)
def test_cost_counts_every_pair(
    tokens: int, heads: tuple[int, int], stride: int, windows: int, selection: str, is_causal: bool
) -> None:
    kernel, block, n, w, dk, dv = stride * windows, 8, 3, 10, 6, 5
    spec = NSASpec.seed(
        num_heads=heads[0], num_kv_heads=heads[1], head_dim=dk, value_dim=dv, window_size=w, block_size=block,
        num_selected_blocks=n, compression_kernel=kernel, compression_stride=stride, selection=selection,
        causal=is_causal,
    )  # fmt: skip
    starts = [s for s in range(0, tokens, stride) if s + kernel <= tokens]
    compressed = selected = recent = past_blocks = 0
    for t in range(tokens):
        compressed += sum(1 for s in starts if s + kernel - 1 <= t or not is_causal)
        own = t // block
        chosen = {own, *range(min(own, n - 1))}
        selected += sum(1 for j in range(tokens) if j // block in chosen and (j <= t or not is_causal))
        recent += sum(1 for j in range(tokens) if t - w < j <= t)
        past_blocks += own
    if selection == "mean_key":
        scoring = 2 * dk * heads[1] * past_blocks
    else:
        scoring = 2 * dk * heads[0] * compressed
    costs = {c.path: c for c in spec.program().cost(tokens, element_bytes=2)}
    assert {name: c.pairs for name, c in costs.items()} == {
        "compressed": compressed, "selected": selected, "window": recent,
    }  # fmt: skip
    per_pair = 2 * heads[0] * (dk + dv)
    assert costs["compressed"].operations == per_pair * compressed
    assert costs["selected"].operations == per_pair * selected + scoring
    assert costs["window"].operations == per_pair * recent
    for name, keys in (("compressed", len(starts)), ("selected", tokens), ("window", tokens)):
        q_and_out = tokens * heads[0] * (dk + dv)
        assert costs[name].bytes == 2 * (q_and_out + keys * heads[1] * (dk + dv))


def test_cost_refuses_a_length_that_is_none() -> None:
    with pytest.raises(SpecError, match=r"cost.tokens = 0 is not allowed"):
        NSASpec.seed().program().cost(0)


def test_pooled_queries_cost_one_row_per_window() -> None:
    spec = NSASpec.seed(causal=False, pool_queries=True, num_heads=2)
    assert spec.program().cost(23)[0].pairs == 5 * 5  # 23 tokens hold 5 whole windows of 4


def test_spec_gives_the_three_paths() -> None:
    spec = NSASpec.paper(window_size=96, num_heads=8, num_kv_heads=2)
    made = spec.program()
    compressed, selected, recent = made.paths
    assert compressed == Path(name="compressed", keys=Phi(method="mlp", kernel=32, stride=16), visible=complete(32, 16))
    assert selected == Path(
        name="selected", keys=Tokens(), visible=top_k("compressed", n=16, block=64, initial=1, local=2)
    )
    assert recent == Path(name="window", keys=Tokens(), visible=window(96))
    assert (made.combine, made.group, made.dv) == ("sigmoid", 4, 128)
    assert isinstance(selected.visible, TopK)
    assert made.source_of(selected.visible) == Phi(method="mlp", kernel=32, stride=16)


def test_without_causality_compressed_tokens_are_all_seen_and_the_window_still_ends_at_t() -> None:
    compressed, selected, recent = NSASpec.seed(causal=False).program().paths
    assert compressed.visible == everything()
    assert isinstance(selected.visible, TopK)
    assert not selected.visible.causal
    assert recent.visible == window(64)


def test_other_attentions_are_programs_too() -> None:
    sinks = program(Path(name="only", visible=first(4) | window(16)))
    assert isinstance(sinks.paths[0].visible, RangeSet)
    moba = program(Path(name="only", visible=top_k("mean_key", n=3, block=16)))
    assert moba.cost(64)[0].pairs == sum(min(t // 16, 2) * 16 + t % 16 + 1 for t in range(64))


def test_the_attention_whose_weights_score_blocks_lists_them() -> None:
    program = NSASpec.paper().program()
    compressed, selected, window_path = program.paths
    assert program.lists_of(compressed) == selected
    assert program.lists_of(window_path) is None
    assert program.lists_of(selected) is None
    again = dataclasses.replace(selected, name="again")
    assert dataclasses.replace(program, paths=(*program.paths, again)).lists_of(compressed) == selected  # the first
    for other in (
        NSASpec.seed().program(),  # scores by mean keys
        NSASpec.paper(causal=False).program(),  # the attention sees tokens that do not score
        NSASpec.seed(selection="compressed", causal=False, pool_queries=True).program(),
    ):
        assert all(other.lists_of(path) is None for path in other.paths)


def test_on_a_cpu_one_kernel_attends_and_lists() -> None:
    program = NSASpec.paper().program()
    cpu, gpu = TARGETS["x86_64_v4"], TARGETS["sm_90a"]
    on_cpu, on_gpu = ([d.op for d in needed_descs(program, "bfloat16", "fwd", target=t)] for t in (cpu, gpu))
    assert "scored_attention" in on_cpu
    assert "select_blocks" not in on_cpu
    assert "select_blocks" in on_gpu
    assert "scored_attention" not in on_gpu
    backward = [
        {d for d in needed_descs(program, "bfloat16", "bwd", target=t) if d.op == "stream_attention"}
        for t in (cpu, gpu)
    ]
    assert {str(d.visible) for d in backward[0]} == {str(d.visible) for d in backward[1]}

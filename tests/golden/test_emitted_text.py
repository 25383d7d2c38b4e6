"""The emitted text of a few kernels, as it was last looked at; `pytest tests/golden --update-golden` writes it anew.

The prelude, `templates/cpu/tile`, is in the repository already: a line stands for it, after it was found in the text
verbatim.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nsa_codegen.desc import KernelDesc
from nsa_codegen.lowering import lower
from nsa_codegen.needed import compress_desc, program_descs
from nsa_codegen.ops import OPS
from nsa_codegen.schedule import CpuSchedule, ScheduleSpace
from nsa_codegen.spec import NSASpec
from nsa_codegen.target import TARGETS
from nsa_codegen.templates.cpu.common import prelude

FOLDER = Path(__file__).parent
TARGET, SCHEDULE = TARGETS["x86_64_v4"], CpuSchedule()


def seed_kernel(kind: str, **words: str) -> KernelDesc:
    """Return the kernel of the seed preset of that kind; the last one where there are several."""
    found = program_descs(NSASpec.seed().program(), "float32", TARGET)
    return [d for d in found if d.kind == kind and all(d.word(name) == word for name, word in words.items())][-1]


GOLDEN = {
    "stream_attention_fwd": seed_kernel("stream_attention_fwd"),
    "gather_attention_fwd": seed_kernel("gather_attention_fwd", source="packed"),
    "select_blocks_fwd": seed_kernel("select_blocks_fwd"),
    "scored_attention_fwd": OPS["scored_attention"].samples[0],
}


def text_of(desc: KernelDesc) -> str:
    text = lower(desc, SCHEDULE, TARGET).text
    selected = dict(desc.dims).get("n", 1)
    assert isinstance(selected, int)
    under = prelude(selected).strip()
    assert under in text, "the text does not hold the prelude"
    return text.replace(under, f"// NSA_MAX_SELECTED {selected}, then templates/cpu/tile") + "\n"


@pytest.mark.parametrize("name", GOLDEN)
def test_emitted_text_is_the_golden_one(name: str, request: pytest.FixtureRequest) -> None:
    path, text = FOLDER / f"{name}.cpp", text_of(GOLDEN[name])
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} differs; if it is meant to: pytest tests/golden --update-golden"


def test_no_golden_text_is_left_over() -> None:
    assert {p.stem for p in FOLDER.glob("*.cpp")} == set(GOLDEN)


def test_lowering_twice_gives_the_same_text() -> None:
    desc = GOLDEN["stream_attention_fwd"]
    assert lower(desc, SCHEDULE, TARGET) == lower(desc, SCHEDULE, TARGET)


UNREAD = (
    KernelDesc.of("combine", "float32", paths=3, dv=16, gates="scalar"),
    KernelDesc.of("pack_blocks", "float32", block=16, dim=16, layout="columns"),
    compress_desc("mean", "float32", kernel=8, stride=4, dim=16),
    compress_desc("mlp", "float32", kernel=8, stride=4, dim=16).replace(hidden=16),
    KernelDesc.of(
        "gather_attention", "float32", reach="causal", source="packed", group=2, dk=16, dv=16, block=16, n=3
    ),
    KernelDesc.of(
        "gather_attention", "float32", direction="bwd", part="runs", reach="causal", group=2, dk=16, dv=16, block=16,
        n=3,
    ),
)  # fmt: skip


@pytest.mark.parametrize("desc", UNREAD, ids=str)
def test_a_field_without_an_axis_changes_no_text(desc: KernelDesc) -> None:
    axes = ScheduleSpace.axes(desc, TARGET, SCHEDULE)
    other = CpuSchedule(query_lanes=32, key_tile=32, register_rows=2, register_vectors=2).to_json()
    unread = {name: other[name] for name, values in axes.items() if len(values) == 1}
    assert unread
    texts = [lower(desc, s, TARGET).text for s in (SCHEDULE, dataclasses.replace(SCHEDULE, **unread))]
    plain = [[line for line in text.splitlines() if not line.startswith("// schedule ")] for text in texts]
    assert plain[0] == plain[1]

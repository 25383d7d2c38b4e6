"""`in_place_of`: another callable in the place of one desc's kernel. `load_kernels`: several at a time."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import torch

from nsa_codegen import autograd, dispatch
from nsa_codegen.desc import KernelDesc
from nsa_codegen.dispatch import in_place_of, load_kernels
from nsa_codegen.errors import CompilerError

DESC = KernelDesc.of("combine", "float32", paths=2, dv=16, gates="scalar")
OTHER = DESC.replace(paths=3)
ARGUMENTS: dict[str, Any] = {"outs": [torch.zeros(1, 2, 1, 16)] * 2, "gates": torch.ones(2)}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[KernelDesc]:
    """The descs whose own kernels were launched; nothing is built."""
    found: list[KernelDesc] = []

    def launch(desc: KernelDesc, **arguments: Any) -> tuple[torch.Tensor, ...]:
        found.append(desc)
        return (arguments["gates"] + 1,)

    monkeypatch.setattr(dispatch, "kernel", lambda desc, *, few=False: desc)
    monkeypatch.setattr(dispatch, "launch", launch)
    return found


def test_the_callable_runs_in_the_place_of_one_desc_and_of_no_other(launched: list[KernelDesc]) -> None:
    seen: list[dict[str, Any]] = []

    def instead(arguments: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        seen.append(arguments)
        return (torch.full((), 7.0),)

    with in_place_of(DESC, instead):
        assert dispatch.run(DESC, **ARGUMENTS)[0] == 7
        assert autograd.run(DESC, **ARGUMENTS)[0] == 7  # whoever imported the name
        assert launched == [] and seen == [ARGUMENTS, ARGUMENTS]
        dispatch.run(OTHER, **ARGUMENTS)
        assert launched == [OTHER]
    dispatch.run(DESC, **ARGUMENTS)
    assert launched == [OTHER, DESC] and len(seen) == 2


def test_the_callable_may_run_the_kernel_itself(launched: list[KernelDesc]) -> None:
    with in_place_of(DESC, lambda arguments: (10 * dispatch.run(DESC, **arguments)[0],)):
        for _ in range(2):  # and stands in its place again afterwards
            assert dispatch.run(DESC, **ARGUMENTS)[0].tolist() == [20, 20]
    assert launched == [DESC, DESC]


def test_an_inner_use_hides_an_outer_one_and_an_error_takes_it_away(launched: list[KernelDesc]) -> None:
    def fails(arguments: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        raise ValueError("as meant")

    with in_place_of(DESC, lambda _: (torch.ones(()),)):
        with pytest.raises(ValueError, match="as meant"), in_place_of(DESC, fails):
            dispatch.run(DESC, **ARGUMENTS)
        assert dispatch.run(DESC, **ARGUMENTS)[0] == 1
    assert launched == []
    dispatch.run(DESC, **ARGUMENTS)
    assert launched == [DESC]


def test_kernels_of_a_program_are_loaded_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits until the other is loading too; one that is asked for twice is loaded once."""
    meeting, loaded = threading.Barrier(2, timeout=60), []

    def kernel(desc: KernelDesc, *, few: bool = False) -> None:
        meeting.wait()
        loaded.append((desc, few))

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(dispatch, "kernel", kernel)
    load_kernels([DESC, OTHER, DESC], few=True)
    assert sorted(loaded, key=str) == sorted([(DESC, True), (OTHER, True)], key=str)


def test_a_kernel_that_fails_to_load_fails_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(desc: KernelDesc, *, few: bool = False) -> None:
        if desc == OTHER:
            raise CompilerError("as meant")

    monkeypatch.setattr(dispatch, "kernel", kernel)
    with pytest.raises(CompilerError, match="as meant"):
        load_kernels([DESC, OTHER], few=False)
    load_kernels([DESC], few=False)
    load_kernels([], few=False)

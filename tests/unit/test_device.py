"""Loading and launching on a GPU, as far as it can be told without one: what is refused before anything is launched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nsa_codegen import device
from nsa_codegen.device import GpuArtifact, device_target
from nsa_codegen.errors import TargetError
from nsa_codegen.target import GPU_TARGETS


class OnAGpu(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    device = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Return what makes cuda:0 a card of a compute capability."""

    def install(major: int, minor: int) -> None:
        device._target_of.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some Card")

    yield install
    device._target_of.cache_clear()


def artifact(target: str, launched: list[Any]) -> GpuArtifact:
    manifest = SimpleNamespace(entry="nsa_kernel", arguments=(SimpleNamespace(name="scale"), SimpleNamespace(name="q")))
    entry: Any = SimpleNamespace(manifest=manifest)
    return GpuArtifact(entry=entry, target=GPU_TARGETS[target], function=lambda *given: launched.append(given))


def test_a_kernel_of_another_architecture_is_refused_before_launch(card: Callable[[int, int], None]) -> None:
    card(9, 0)
    launched: list[Any] = []
    q = torch.zeros(2).as_subclass(OnAGpu)
    with pytest.raises(TargetError, match=r"built for sm_80, and cuda:0 is an sm_90a; build it with --target sm_90a"):
        artifact("sm_80", launched).launch({"q": q, "scale": 0.5})
    assert not launched
    artifact("sm_90a", launched).launch({"q": q, "scale": 0.5})
    assert launched == [(0.5, q)]


def test_tensors_of_the_cpu_are_refused_before_launch() -> None:
    launched: list[Any] = []
    with pytest.raises(TargetError, match="cpu is no GPU"):
        artifact("sm_80", launched).launch({"q": torch.zeros(2), "scale": 0.5})
    assert not launched


@pytest.mark.parametrize(("capability", "name"), [((8, 0), "sm_80"), ((9, 0), "sm_90a"), ((12, 0), "sm_120a")])
def test_each_capability_has_its_target(
    card: Callable[[int, int], None], capability: tuple[int, int], name: str
) -> None:
    card(*capability)
    assert device_target(torch.device("cuda", 0)).name == name


def test_an_unknown_architecture_is_named(card: Callable[[int, int], None]) -> None:
    card(7, 0)
    with pytest.raises(TargetError, match=r"Some Card has the architecture sm_70; kernels are for \['sm_80'"):
        device_target(torch.device("cuda", 0))


def test_the_artifact_is_a_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        artifact("sm_80", []).target = GPU_TARGETS["sm_90a"]  # type: ignore[misc]

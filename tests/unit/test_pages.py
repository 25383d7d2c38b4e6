"""Large tensors are mapped in large pages; small ones and strange ones are left as they are."""

from __future__ import annotations

import mmap
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nsa_codegen import pages
from nsa_codegen.pages import MAPPED, in_large_pages

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def flags_at(address: int) -> set[str]:
    """Return the flags that the kernel keeps of the mapping that holds `address`."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if bounds:
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise AssertionError(f"nothing is mapped at {address:#x}")


def freshly_mapped() -> torch.Tensor:
    """Return a large tensor in a mapping of its own: malloc may give one from its heap, where others were before it."""
    return torch.frombuffer(mmap.mmap(-1, MAPPED, flags=mmap.MAP_PRIVATE), dtype=torch.uint8)


@pytest.mark.skipif(not SWITCH.exists(), reason="this kernel has no large pages")
def test_a_large_tensor_is_asked_for_in_large_pages() -> None:
    middle = MAPPED // 2
    plain, large = freshly_mapped(), freshly_mapped()
    assert in_large_pages(large) is large
    assert "hg" in flags_at(large.data_ptr() + middle)
    assert "hg" not in flags_at(plain.data_ptr() + middle)
    large.fill_(3)
    assert bool((large == 3).all())


@pytest.mark.skipif(not SWITCH.exists(), reason="this kernel has no large pages")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep what they keep")
def test_the_heap_grows_in_large_pages() -> None:
    text = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_pages import MAPPED, flags_at
from nsa_codegen.pages import keep_freed_memory
keep_freed_memory()
print(*flags_at(torch.empty(MAPPED // 2, dtype=torch.uint8).data_ptr() + MAPPED // 4))
"""
    found = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True, timeout=120)
    assert "hg" in found.stdout.split()


def test_other_tensors_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    advised = []
    monkeypatch.setattr(pages, "_advise", lambda *given: advised.append(given))
    for x in (torch.empty(0), torch.empty(MAPPED - 1, dtype=torch.uint8), torch.empty(MAPPED, device="meta")):
        assert in_large_pages(x) is x
    assert not advised
    in_large_pages(torch.empty(MAPPED // 4))
    assert len(advised) == 1


@pytest.mark.parametrize("missing", ["_ADVICE", "_madvise"])
def test_systems_without_large_pages_are_served(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(pages, missing, None if missing == "_ADVICE" else lambda: None)
    assert bool((in_large_pages(torch.empty(MAPPED, dtype=torch.uint8)).fill_(1) == 1).all())

"""CONTRIBUTING.md names files and symbols that exist; so does docs/upstream.md."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("CONTRIBUTING.md", "docs/upstream.md", "README.md")


def named_paths(page: str) -> list[tuple[str, str]]:
    """Return (path, symbol or "") for each `path` and `path:symbol` in backquotes; paths with <placeholders> aside."""
    words = re.findall(r"`([\w./-]+?)(?::(\w+))?`", (ROOT / page).read_text())
    known = ("nsa_codegen/", "tests/", "schedules/", "docs/", "examples/", ".ci/")
    return [(path, symbol) for path, symbol in words if path.startswith(known)]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
    named = named_paths(page)
    assert named
    for path, symbol in named:
        assert (ROOT / path).exists(), f"{page} names {path}"
        if symbol:
            module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            assert hasattr(importlib.import_module(module), symbol), f"{page} names {path}:{symbol}"


def test_the_walk_throughs_are_there_and_their_checks_bite():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for title in ("Add an op", "Add an architecture", "Add a schedule"):
        assert f"\n## {title}\n" in text
    assert len([s for _, s in named_paths("CONTRIBUTING.md") if s]) >= 10


def test_the_workarounds_are_where_the_page_says():
    page = (ROOT / "docs/upstream.md").read_text()
    code = {p: (ROOT / p).read_text() for p, _ in named_paths("docs/upstream.md") if (ROOT / p).is_file()}
    everything = "\n".join(code.values())
    for symbol in re.findall(r"`(?:nsa::)?([a-zA-Z_0-9]+)`", page):
        if symbol not in ("c", "uint16", "max"):
            assert symbol in everything, f"docs/upstream.md names {symbol}"

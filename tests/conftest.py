"""Options of the test run: they must be known before the folders' own conftest files are read."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the emitted texts of tests/golden anew")

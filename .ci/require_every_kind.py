"""Fail if a kind of tests (a folder below tests/) did not run: no test of it, or all of them skipped.

Usage: require_every_kind.py REPORT, where REPORT is pytest's JUnit XML.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

NEEDS_A_GPU = ("gpu",)


def kinds_with_tests(tests: Path) -> set[str]:
    """Return the folders of `tests` that hold test files."""
    return {p.relative_to(tests).parts[0] for p in tests.rglob("test_*.py") if p.parent != tests}


def ran_by_kind(report: Path) -> Counter[str]:
    """Return for each kind how many of its tests ran, skipped ones left out."""
    ran: Counter[str] = Counter()
    for case in ET.parse(report).iter("testcase"):
        if case.find("skipped") is None:
            ran[_kind(case.get("classname", ""))] += 1
    return ran


def _kind(classname: str) -> str:
    """Return `unit` of `tests.unit.test_spec.TestClass`."""
    parts = classname.split(".")
    return parts[1] if len(parts) > 2 and parts[0] == "tests" else ""


def main(report: Path) -> int:
    """Print how many tests of each kind ran, and return 1 if a kind did not."""
    ran = ran_by_kind(report)
    kinds = kinds_with_tests(Path("tests"))
    missing = sorted(k for k in kinds if not ran[k] and k not in NEEDS_A_GPU)
    for kind in sorted(kinds):
        print(f"{kind}: {ran[kind]} tests ran")
    if missing or not kinds:
        print(f"error: no test ran of the kinds {missing or 'any'}; all skipped is not passed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

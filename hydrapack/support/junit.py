"""JUnit XML of named checks, as CI systems show it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from hydrapack.support.extras import need


@dataclass(frozen=True)
class Check:
    """One thing that was checked; ``detail`` says what was found."""

    name: str
    passed: bool
    detail: str
    values: dict[str, float] = field(default_factory=dict)
    """What was measured, by name."""


def junit_xml(suite: str, checks: Sequence[Check]) -> bytes:
    """The document; it holds no times, so that the same checks give the same bytes."""
    need("junitparser")
    from junitparser import Failure, JUnitXml, TestCase, TestSuite

    cases = TestSuite(suite)
    for check in checks:
        case = TestCase(check.name, classname=suite)
        if check.passed:
            case.system_out = check.detail
        else:
            case.result = [Failure(check.detail)]
        cases.add_testcase(case)
    document = JUnitXml(suite)
    document.add_testsuite(cases)
    document.update_statistics()
    out = io.BytesIO()
    document.write(out, pretty=True)
    return out.getvalue()

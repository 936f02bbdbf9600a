"""``make robustness`` writes down what was tried and what came of it: ``figures/robustness.md``."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.robustness.copies")
from tests.robustness.copies import in_words, what_tests_try, write_down  # noqa: E402

TABLE = "figures/robustness.md"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A test's report says in words what was tried: the first line of its docstring."""
    report = yield
    if item.get_closest_marker("robustness"):
        report.user_properties.append(("what", in_words(item.function.__doc__)))
    return report


def pytest_terminal_summary(terminalreporter, config):
    """The rows of what was tried now; those of what was not stay as they are, as long as there is a test that tries it."""
    tried, good, seconds = defaultdict(int), defaultdict(int), defaultdict(float)
    for report in itertools.chain.from_iterable(map(terminalreporter.getreports, ("passed", "failed", "error"))):
        properties = dict(report.user_properties)
        if what := properties.get("what"):
            times = properties.get("times", 1)
            tried[what] += times
            good[what] += times * report.passed
            seconds[what] += report.duration
    if tried:
        rows = {what: (tried[what], good[what], seconds[what]) for what in tried}
        write_down(config.rootpath / TABLE, rows, what_tests_try(Path(__file__).parent))

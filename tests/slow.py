"""Tests that take long and guard little that others do not: `make slow-test` runs them too."""

import os

import pytest

SLOW = pytest.mark.skipif(not os.environ.get("XRVLM_SLOW"), reason="slow: `make slow-test` runs it")


def slow(*values: object) -> list:
    """Parameters of a test, each skipped unless slow tests run."""
    return [pytest.param(value, marks=SLOW) for value in values]

"""The tiers of the tests: quick by default, `slow` and `nightly` on request (CONTRIBUTING.md)."""

import os
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import settings

VARIABLE = 'VISION_TEST_TIER'  # set by tests/conftest.py before a test is imported


def quick() -> bool:
    """Whether this session runs the quick tests alone."""
    return os.environ.get(VARIABLE, 'quick') == 'quick'


def examples(count: int) -> settings:
    """So many random examples in the quick tests, and ten times as many in the slow ones."""
    return settings(max_examples=count if quick() else 10 * count)


def split(cases: Iterable, in_quick: Sequence, one_argument: bool = False) -> list:
    """Parameters for a test: those named run in every tier, the others are slow.

    A case that is a tuple has a value for each of the test's arguments, unless there is `one_argument`.
    """
    return [
        pytest.param(
            *(c if isinstance(c, tuple) and not one_argument else [c]),
            marks=() if c in in_quick else pytest.mark.slow,
        )
        for c in cases
    ]

"""The tiers of the tests: quick by default, `slow` and `nightly` on request (CONTRIBUTING.md)."""

import os
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import settings

VARIABLE = 'VISION_TEST_TIER'  # set by tests/conftest.py before a test is imported


def quick() -> bool:
    """Returns True if this session runs only the quick tests."""
    return os.environ.get(VARIABLE, 'quick') == 'quick'


def examples(count: int) -> settings:
    """Sets the number of random examples in the quick tests; the slow tests try ten times that."""
    return settings(max_examples=count if quick() else 10 * count)


def split(cases: Iterable, in_quick: Sequence, one_argument: bool = False) -> list:
    """Returns parameters for a test: the named ones run in every tier, the others are slow.

    A tuple has a value for each argument of the test, unless `one_argument` is set.
    """
    return [
        pytest.param(
            *(c if isinstance(c, tuple) and not one_argument else [c]),
            marks=() if c in in_quick else pytest.mark.slow,
        )
        for c in cases
    ]

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision.core import durations
from vision.core.errors import UserError

sizes = st.integers(1, 10_000)


@pytest.mark.parametrize(
    ('text', 'steps'),
    [
        ('20 epochs', 200),
        ('1 epoch', 10),
        ('450000 steps', 450_000),
        ('1e3 examples', 10),
        ('0.5 epochs', 5),
        ('0 steps', 0),
        ('1e-9 epochs', 1),
    ],
)
def test_reads_what_people_say(text, steps):
    assert durations.to_steps(text, batch_size=100, num_examples=1000) == steps


@pytest.mark.parametrize(
    'text', ['20', 'epochs', '20 minutes', '-1 epochs', 'nan steps', 'inf epochs', '', '1 2 steps']
)
def test_refuses_the_rest_naming_key_and_value(text):
    with pytest.raises(UserError, match=r'training\.duration') as error:
        durations.to_steps(text, 100, 1000, 'training.duration')
    assert repr(text) in str(error.value)


@given(st.integers(1, 300), sizes, sizes)
def test_epochs_follow_one_another_without_a_gap(epochs, batch_size, num_examples):
    steps = durations.to_steps(f'{epochs} epochs', batch_size, num_examples)
    assert abs(Fraction(epochs * num_examples, batch_size) - steps) <= max(
        Fraction(1, 2), 1 - Fraction(epochs * num_examples, batch_size)
    )


@given(st.integers(1, 30), sizes, sizes)
def test_what_is_due_each_epoch_is_due_as_often_as_there_are_epochs(epochs, batch_size, n):
    """It is also due at the end of the run, and rounding errors do not add up."""
    total = durations.to_steps(f'{epochs} epochs', batch_size, n)
    if total > 20_000 or n < batch_size:
        return
    every = durations.Every(durations.steps_in('1 epochs', batch_size, n))
    due = [step for step in range(1, total + 1) if every.due(step)]
    assert len(due) == epochs
    assert due[-1] == total


@given(st.integers(1, 50), st.integers(1, 500))
def test_every_so_many_steps(period, total):
    every = durations.Every(Fraction(period))
    assert [s for s in range(1, total) if every.due(s)] == list(range(period, total, period))

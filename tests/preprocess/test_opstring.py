import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision.core.errors import UserError
from vision.preprocess import opstring
from vision.preprocess.opstring import Op

names = st.from_regex(r'[a-z][a-z0-9_]{0,10}', fullmatch=True).filter(
    lambda s: s not in ('in', 'is', 'or', 'and', 'not', 'if', 'for', 'as', 'def', 'del', 'try', 'from',
                        'class', 'else', 'elif', 'with', 'pass', 'break', 'while', 'yield', 'raise',
                        'assert', 'async', 'await', 'except', 'finally', 'global', 'import', 'lambda',
                        'nonlocal', 'return', 'continue')
)  # fmt: skip
literals = st.recursive(
    st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.text()
    | st.none(),
    lambda inner: st.lists(inner).map(tuple) | st.lists(inner),
    max_leaves=5,
)
ops = st.builds(
    Op,
    names,
    st.lists(literals, max_size=3).map(tuple),
    st.dictionaries(names, literals, max_size=3),
)


@given(st.lists(ops, max_size=5).map(tuple))
def test_what_is_written_is_read_back(parsed):
    assert opstring.parse(opstring.format_ops(parsed)) == parsed


def test_reads_as_people_write():
    assert opstring.parse(' decode | resize(32, antialias=True)|flip_lr') == (
        Op('decode', (), {}),
        Op('resize', (32,), {'antialias': True}),
        Op('flip_lr', (), {}),
    )
    assert opstring.parse('') == ()


@pytest.mark.parametrize(
    'text',
    [
        'a||b',
        'a|',
        'a(',
        'a(b)',
        'a(1+x)',
        'a.b(1)',
        'a(**{})',
        'a(__import__("os"))',
        '1',
        'a b',
        'a()()',
        'f"x"',
    ],
)
def test_anything_else_is_refused_and_nothing_is_run(text):
    with pytest.raises(UserError, match='op string'):
        opstring.parse(text)


def resize(image, key, height, width=None):
    """A stand-in for the check of names and arguments."""


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('resiz(3)', "Did you mean 'resize'"),
        ('resize', 'height'),
        ('resize(1, 2, 3)', 'resize'),
        ('resize(1, widht=2)', 'widht'),
    ],
)
def test_unknown_ops_and_arguments_are_named(text, message):
    with pytest.raises(UserError, match=message):
        opstring.check(opstring.parse(text), {'resize': resize}, skip=2)

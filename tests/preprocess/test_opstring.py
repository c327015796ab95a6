import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision.core.errors import UserError
from vision.preprocess import ops, opstring
from vision.preprocess.ops import DEVICE, HOST, OPS
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
modules = st.lists(names, min_size=1, max_size=2).map(lambda parts: '.'.join(parts) + ':')
op_calls = st.builds(
    Op,
    st.builds(str.__add__, st.just('') | modules, names),
    st.lists(literals, max_size=3).map(tuple),
    st.dictionaries(names, literals, max_size=3),
)


@given(st.lists(op_calls, max_size=5).map(tuple))
def test_what_is_written_is_read_back(parsed):
    assert opstring.parse('|'.join(map(str, parsed))) == parsed


def test_reads_as_people_write():
    assert opstring.parse(' decode | resize(32, antialias=True)|flip_lr') == (
        Op('decode', (), {}),
        Op('resize', (32,), {'antialias': True}),
        Op('flip_lr', (), {}),
    )
    assert opstring.parse('my.ops:blur(sigma=2) | my_ops:sharpen') == (
        Op('my.ops:blur', (), {'sigma': 2}),
        Op('my_ops:sharpen', (), {}),
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
        'a.b:c.d(1)',
        'a:b:c(1)',
        ':a(1)',
        'a:',
        'a-b:c',
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
    """An op that stands for any in the checks of names and arguments."""


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


# Ops with a host and a device form.
@pytest.mark.parametrize(
    'text',
    [
        'resize("a")', 'resize(-3)', 'resize(0)', 'resize(32.5)', 'resize(True)', 'resize(1000000000)',
        'pad(-1)', 'pad(1, 256)', 'random_crop(8, padding=-1)', 'central_crop([8])', 'cutout("x")',
        'translate(1.5)', 'affine(degrees="a")', 'affine(scale=-1)', 'elastic(1, 0)', 'elastic("a", 1)',
    ],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused_on_both_routes(text):
    with pytest.raises(UserError, match='must be') as error:
        ops.parse(text, DEVICE)
    assert text.split('(')[0] in str(error.value)
    with pytest.raises(UserError, match='must be'):
        ops.parse(text)


@pytest.mark.parametrize(
    'text',
    [
        'decode(2)', 'decode(True)', 'resize(3, antialias=1)', 'random_resized_crop(8, area=(0.5, 0.1))',
        'random_resized_crop(8, area=0.5)', 'random_resized_crop(8, ratio=(0, 1))', 'zoom(0, 2)',
        'zoom(2, 1)', 'scale_jitter(0, 5)', 'scale_jitter("a")', 'grayscale(1.5)', 'brightness(-1)',
        'random_erasing(area=(0.5, 2))', 'rotate("left")', 'multi_scale_crops(8, scales=(0,))',
    ],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused_on_the_host(text):
    with pytest.raises(UserError, match='must be'):
        ops.parse(text)


@pytest.mark.parametrize('place', [HOST, DEVICE])
def test_every_parameter_has_a_rule_or_a_check_of_its_own(place):
    own = {'method', 'policy', 'num_layers', 'magnitude', 'low', 'high'}
    for name, entry in OPS.items():
        if place in entry.places:
            names = set(inspect.signature(entry.form(place)).parameters) - {'image', 'rng'}
            assert names <= set(opstring.RULES) | own, name


def test_what_only_the_host_takes_goes_to_the_host():
    assert ops.place('resize(16)|flip_lr', in_memory=True) == DEVICE
    assert ops.place("resize(16, method='bicubic')", in_memory=True) == HOST


def test_views_come_last_and_magnitudes_are_whole():
    with pytest.raises(UserError, match='must be the last op'):
        ops.parse('ten_crop(16)|flip_lr')
    for text in ('randaugment(2, 9.5)', 'randaugment(True, 9)', 'randaugment(0)'):
        with pytest.raises(UserError, match='must be a whole number'):
            ops.parse(text)

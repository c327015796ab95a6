"""The registry of ops: their forms, agreement of host and device, and where an op string runs."""

import importlib
import inspect

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from tests.tiers import quick, split
from vision.core.errors import UserError
from vision.core.mesh import make_mesh
from vision.data import arrays
from vision.preprocess import device, inputs, ops
from vision.preprocess.ops import DEVICE, HOST, OPS, PER_OP, DeviceRng, Rng
from vision.preprocess.pipeline import eval_batches

BOTH = [name for name, entry in OPS.items() if set(entry.places) == {HOST, DEVICE}]
INTERPOLATING = {'resize', 'affine', 'elastic'}  # all other ops give identical pixels
# A value for each parameter name.
ARGUMENTS = {
    'height': 6, 'width': 5, 'padding': 2, 'pixels': 2, 'size': 3, 'value': 9, 'degrees': 25.0,
    'scale': 0.2, 'shear': 0.3, 'shift': 2.0, 'alpha': 30.0, 'sigma': 3.0,
}  # fmt: skip
MORE = [
    ('resize', {'height': 50, 'width': 9}),  # larger on one axis, smaller on the other
    ('random_crop', {'height': 8}),
    ('cutout', {'size': 4}),
    ('affine', {}),
    ('elastic', {'alpha': 8.0, 'sigma': 1.0}),
]


def arguments_of(name):
    """Returns arguments for an op's device form from the table above, or the defaults."""
    parameters = inspect.signature(OPS[name].form(DEVICE)).parameters
    return {p: ARGUMENTS[p] for p in parameters if p in ARGUMENTS}


def noise(shape, low, high):
    return low + (high - low) * np.random.default_rng(1).random(tuple(np.asarray(shape)))


class HostRng(Rng):
    """An Rng that returns the numbers of one row and records the requests."""

    def __init__(self, numbers):
        super().__init__(tf.constant(numbers))
        self.asked = []

    def uniform(self, low=0.0, high=1.0, shape=()):
        self.asked.append((low, high, tuple(shape)))
        return super().uniform(low, high, shape)

    def field(self, shape, low, high, dtype='float32'):
        self.asked.append((low, high, tuple(np.asarray(shape))))
        return tf.cast(noise(shape, low, high), dtype)


class FixedDeviceRng(DeviceRng):
    """The device form of `HostRng`."""

    def __init__(self, numbers):
        self._numbers = list(numbers)
        self.asked = []

    def uniform(self, low=0.0, high=1.0, shape=()):
        self.asked.append((low, high, tuple(shape)))
        taken = [self._numbers.pop(0) for _ in range(int(np.prod(shape)))]
        return jnp.asarray(low + (high - low) * np.reshape(taken, shape), jnp.float32)

    def field(self, shape, low, high):
        self.asked.append((low, high, tuple(shape)))
        return jnp.asarray(noise(shape, low, high), jnp.float32)


@pytest.fixture(scope='module', params=split(['digit', 'photo', 'grey photo'], ['photo']))
def image(request, photos):
    if request.param == 'digit':
        return arrays.digits('train').images[7]
    return photos[-1][100:124, 60:91, : 1 if request.param == 'grey photo' else 3]


@pytest.mark.parametrize(('name', 'arguments'), [*((n, arguments_of(n)) for n in BOTH), *MORE])
def test_both_forms_make_the_same_of_the_same_draws(image, name, arguments):
    for numbers in np.random.default_rng(0).random((2 if quick() else 6, PER_OP)):
        drawn = [HostRng(numbers)], [FixedDeviceRng(numbers)]
        on_host, on_device = drawn if OPS[name].draws() else ([], [])
        host = OPS[name].form(HOST)(tf.constant(image), *on_host, **arguments).numpy()
        device = OPS[name].form(DEVICE)(jnp.asarray(image, jnp.float32), *on_device, **arguments)
        assert [rng.asked for rng in on_host] == [rng.asked for rng in on_device]
        assert host.dtype == np.uint8 and device.dtype == np.float32
        if name in INTERPOLATING:  # the host rounds
            np.testing.assert_allclose(device, host, atol=0.51)
        else:
            np.testing.assert_array_equal(device, host)


def test_the_registry_has_every_form_and_no_other():
    for name, entry in OPS.items():
        module = importlib.import_module(entry.module)
        assert entry.places == tuple(
            place for place, suffix in ((HOST, ''), (DEVICE, '_on_device')) if hasattr(module, name + suffix)
        )  # fmt: skip
        forms = [inspect.signature(entry.form(place)).parameters for place in entry.places]
        assert len({'rng' in form for form in forms}) == 1, name
        assert forms[-1].keys() <= forms[0].keys(), name
        assert all(entry.form(place).__doc__ for place in entry.places), name
    files = {importlib.import_module(entry.module) for entry in OPS.values()}
    on_device = {name for file in files for name in vars(file) if name.endswith('_on_device')}
    on_device = {name for name in on_device if not name.startswith('_')}
    assert on_device == {f'{name}_on_device' for name in BOTH}


@pytest.mark.parametrize(
    ('text', 'in_memory', 'where'),
    [
        ('', True, 'on the device'),
        ('resize(32)|affine(degrees=10)|flip_lr', True, 'on the device'),
        ('resize(32)|randaugment', True, 'on the host, since randaugment has no form for the device'),
        ("resize(16, method='bicubic')|flip_lr", True, "on the host, since the form of resize for the device does not take all of resize(16, method='bicubic')"),
        ('decode|resize(32)', False, 'on the host, since the device takes only images of one size in memory'),
        ('resize(32)', False, 'on the host, since the device takes only images of one size in memory'),
    ],
)  # fmt: skip
def test_where_a_string_runs_and_why(text, in_memory, where):
    assert ops.describe_place(text, in_memory) == where
    assert ops.place(text, in_memory) in where


MY_OPS = """
import jax.numpy as jnp
import tensorflow as tf

def invert(image, strength=1.0):
    return tf.cast(strength * (255 - tf.cast(image, tf.float32)), tf.uint8)

def invert_on_device(image, strength=1.0):
    return strength * (255 - image)

def shift_on_device(image, rng, pixels):
    return jnp.roll(image, rng.below(pixels), 0)
"""


@pytest.fixture
def my_ops(tmp_path, monkeypatch):
    (tmp_path / 'my_ops.py').write_text(MY_OPS)
    monkeypatch.syspath_prepend(tmp_path)


def test_an_op_of_ones_own_runs_in_both_places(my_ops, jpegs):
    digits = arrays.digits('test')
    assert ops.place('my_ops:invert(strength=1.0)', in_memory=True) == DEVICE
    batch = next(iter(inputs.EvalBatches(digits, 'my_ops:invert', 10, make_mesh())))
    np.testing.assert_array_equal(batch['image'][:10], 255.0 - digits.images[:10])
    plain, inverted = (
        next(eval_batches(jpegs, f'decode|resize(9){more}', batch_size=4))['image']
        for more in ('', '|my_ops:invert')
    )
    np.testing.assert_array_equal(inverted, 255 - plain)


def test_an_op_of_ones_own_may_draw_numbers(my_ops):
    split = device.DeviceSplit(arrays.digits('test'), 'my_ops:shift(8)', 0, make_mesh())
    ids = np.zeros(64, int)
    rolled = np.asarray(split.batch(ids, np.arange(64))['image'])
    assert len({image.tobytes() for image in rolled}) == 8


@pytest.mark.parametrize(
    ('text', 'why'),
    [
        ('resize(8)|no_such_module:op', "cannot import 'no_such_module'"),
        ('my_ops:blur', "neither 'blur' nor blur_on_device"),
        ('my_ops:shift(2)|randaugment', "'my_ops:shift' has no form that runs on the host"),
        ('my_ops:invert(streng=2)', 'streng'),
        ('my_ops:invert(strength="a")', 'must be a number'),
    ],
)
def test_what_is_wrong_with_an_op_of_ones_own(my_ops, text, why):
    with pytest.raises(UserError, match=why):
        inputs.check(arrays.digits('test'), text)

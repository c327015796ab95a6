"""LeNet-5 against its paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden.generator import images
from vision.core.errors import UserError
from vision.models import create_model
from vision.models.lenet_1998 import C3_INPUTS, digit_codes, squash, uniform_by_fan_in


def apply(model, params, x):
    return jax.jit(lambda p, x: model.apply({'params': p}, x, train=False))(params, x)


def init(model, x):
    return jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(x)['params']


@pytest.fixture(scope='module')
def lenet():
    model = create_model('lenet5_1998', num_classes=10)
    x = images(32, 3)[..., :1]
    return model, init(model, x), x


def test_table_one_has_sixty_connections_none_of_them_twice():
    assert sum(map(len, C3_INPUTS)) == 60
    assert len(set(C3_INPUTS)) == 16
    assert [sum(i in maps for maps in C3_INPUTS) for i in range(6)] == [10] * 6
    assert [len(maps) for maps in C3_INPUTS] == [3] * 6 + [4] * 9 + [6]


def test_bitmaps_are_ten_different_drawings_of_seven_by_twelve():
    codes = digit_codes()
    assert codes.shape == (10, 84)
    assert set(np.unique(codes)) == {-1, 1}
    assert len({code.tobytes() for code in codes}) == 10
    one = codes[1].reshape(12, 7)
    assert (one[3:9, 3:5] == 1).all()  # its stem
    assert (one[10:] == -1).all()  # nothing below the line


def test_the_sigmoid_is_the_appendixs():
    assert squash(jnp.array(1.0)) == pytest.approx(1, abs=1e-4)
    assert squash(jnp.array(-1.0)) == pytest.approx(-1, abs=1e-4)
    assert squash(jnp.array(50.0)) == pytest.approx(1.7159)


def test_logits_are_minus_squared_distances_to_the_bitmaps(lenet):
    model, params, x = lenet
    logits, endpoints = apply(model, params, x)
    features = np.asarray(endpoints['features'])
    expected = -((features[:, None] - digit_codes()) ** 2).sum(-1)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    assert (np.abs(features) < 1.7159).all()


def test_subsampling_sums_four_pixels_times_a_coefficient_plus_a_bias(lenet):
    model, params, x = lenet
    _, endpoints = apply(model, params, x)
    c1, s2 = (np.asarray(endpoints[name]) for name in ('c1', 's2'))
    total = c1.reshape(3, 14, 2, 14, 2, 6).sum((2, 4))
    p = params['S2']
    np.testing.assert_allclose(
        s2, squash(total * p['coefficient'] + p['bias']), rtol=1e-4, atol=1e-6
    )


def test_a_map_of_c3_sees_only_its_maps_of_s2(lenet):
    model, params, x = lenet

    def third_layer(perturbation):
        variables = {'params': params, 'perturbations': perturbation}
        return model.apply(variables, x, train=False)[1]['c3'].sum((0, 1, 2))

    init = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False)['perturbations'])
    sensitivity = jax.jit(jax.jacobian(third_layer))(init(x))['s2']
    connected = np.abs(sensitivity).max((1, 2, 3)) > 0
    for target, maps in enumerate(C3_INPUTS):
        assert tuple(np.flatnonzero(connected[target])) == maps


def test_weights_start_uniform_within_their_fan_in(lenet):
    _, params, _ = lenet
    for layer, fan_in in (('C1', 25), ('C5', 400), ('F6', 120)):
        kernel = np.abs(params[layer]['kernel'])
        assert 0.8 * 2.4 / fan_in < kernel.max() <= 2.4 / fan_in
    fan_in = 25 * np.repeat([len(maps) for maps in C3_INPUTS], [len(m) for m in C3_INPUTS])
    assert (np.abs(params['C3']['kernel']) <= 2.4 / fan_in).all()
    draws = uniform_by_fan_in(4)(jax.random.key(0), (10_000,))
    assert np.std(draws) == pytest.approx(0.6 / np.sqrt(3), rel=0.02)


def test_it_has_ten_classes_and_one_channel_only(lenet):
    with pytest.raises(UserError, match=r"ten classes.*not 5: use 'lenet5'"):
        create_model('lenet5_1998', num_classes=5).init(
            jax.random.key(0), jnp.zeros((1, 32, 32, 1)), train=False
        )
    model, params, _ = lenet
    with pytest.raises(UserError, match='channels = 1, not 3'):
        model.apply({'params': params}, jnp.zeros((1, 32, 32, 3)), train=False)
    with pytest.raises(UserError, match=r'32x32, not 28x28: pad'):
        model.apply({'params': params}, jnp.zeros((1, 28, 28, 1)), train=False)


def test_todays_form_pads_28_px_or_takes_32():
    padded = create_model('lenet5', num_classes=10, padding=2)
    plain = create_model('lenet5', num_classes=10)
    x = images(28, 2)[..., :1]
    params = init(plain, jnp.zeros((1, 32, 32, 1)))
    inside = apply(plain, params, np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))))
    np.testing.assert_allclose(apply(padded, params, x)[0], inside[0], rtol=1e-5)
    with pytest.raises(UserError, match='padding=2 is for 28x28'):
        plain.apply({'params': params}, x, train=False)


@pytest.mark.parametrize('arguments', [{'activation': 'tanh'}, {'pool': 'average'}])
def test_todays_form_has_its_older_variants(arguments):
    model = create_model('lenet5', num_classes=10, **arguments)
    x = images(32, 2)[..., :1]
    params = init(model, x)
    plain = apply(create_model('lenet5', num_classes=10), params, x)[0]
    assert np.abs(apply(model, params, x)[0] - plain).max() > 1e-3

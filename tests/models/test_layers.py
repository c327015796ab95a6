from concurrent.futures import ThreadPoolExecutor
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.processes import run_module
from vision.core.errors import UserError
from vision.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    adaptive_avg_pool,
    avg_pool,
    convolve,
    global_avg_pool,
    he_normal,
    he_normal_fan_out,
    local_response_norm,
    max_pool,
    same_padding,
    shapes_only,
    truncated_normal,
)
from vision.models.resnet import power_pool

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def test_convolution_is_the_sum_over_windows_in_groups():
    x, model = draw(2, 6, 5, 4), Conv(6, (3, 2), strides=2, padding=(1, 0), groups=2)
    variables = model.init(jax.random.key(0), x)
    kernel = np.asarray(variables['params']['kernel'])
    assert kernel.shape == (3, 2, 2, 6)
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    expected = np.zeros((2, 3, 2, 6), np.float32)
    for i, j, out in np.ndindex(3, 2, 6):
        group = slice(0, 2) if out < 3 else slice(2, 4)
        window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 2, group]
        expected[:, i, j, out] = (window * kernel[..., out]).sum((1, 2, 3))
    np.testing.assert_allclose(model.apply(variables, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('length', 'window', 'stride', 'expected'),
    [
        (224, 3, 2, (0, 1)),
        (112, 5, 2, (1, 2)),
        (65, 3, 2, (1, 1)),
        (7, 5, 1, (2, 2)),
        (9, 1, 2, (0, 0)),
    ],
)
def test_same_padding_is_tensorflows(length, window, stride, expected):
    assert same_padding(length, window, stride) == expected
    x, kernel = draw(1, length, 3, 2), draw(window, 1, 1, 2)
    y = convolve(x, kernel, (stride, 1), 'same', groups=2)
    assert y.shape[1] == -(-length // stride)
    sides = np.pad(x, ((0, 0), expected, (0, 0), (0, 0)))
    np.testing.assert_allclose(
        y[:, 0], (sides[:, :window] * kernel[:, :, 0]).sum(1), rtol=1e-4, atol=1e-5
    )


def test_local_response_norm_is_the_papers_sum():
    x = 10 * draw(1, 2, 2, 8)
    expected = np.empty_like(x)
    for channel in range(8):
        near = x[..., max(0, channel - 2) : channel + 3]
        denominator = (2 + 1e-4 * (near**2).sum(-1)) ** 0.75
        expected[..., channel] = x[..., channel] / denominator
    np.testing.assert_allclose(local_response_norm(x), expected, rtol=1e-5)


@pytest.mark.parametrize('length, outputs', [(7, 3), (8, 4), (112, 56), (3, 1), (4, 2)])
def test_a_ceiling_pool_keeps_the_window_over_the_edge(length, outputs):
    x = draw(1, length, length, 1)
    y = np.asarray(jax.jit(lambda x: max_pool(x, 3, 2, ceil=True))(x))
    assert y.shape == (1, outputs, outputs, 1)
    assert y[0, -1, -1, 0] == x[0, 2 * outputs - 2 :, 2 * outputs - 2 :].max()


def test_a_ceiling_pool_drops_a_window_of_padding_only():
    assert max_pool(draw(1, 4, 4, 1), 2, 2, padding=1, ceil=True).shape == (1, 3, 3, 1)


def test_average_pool_counts_padding_as_zeros():
    y = avg_pool(np.ones((1, 3, 3, 1), np.float32), 3, 1, padding=1)
    np.testing.assert_allclose(y[0, 0, 0, 0], 4 / 9)
    np.testing.assert_allclose(y[0, 1, 1, 0], 1)


@pytest.mark.parametrize('length', [3, 6, 7, 13])
def test_adaptive_pool_means_over_even_windows(length):
    x = draw(1, length, length, 2)
    y = np.asarray(adaptive_avg_pool(x, 6))
    for i in range(6):
        start, stop = i * length // 6, int(np.ceil((i + 1) * length / 6))
        expected = x[:, start:stop, start:stop].mean((1, 2))
        np.testing.assert_allclose(y[:, i, i], expected, rtol=1e-5, atol=1e-6)


def test_batch_norm_normalises_and_keeps_the_unbiased_variance():
    x, norm = 3 + 2 * draw(4, 5, 5, 3), BatchNorm(momentum=0.9, epsilon=1e-3)
    variables = norm.init(jax.random.key(0), x, train=True)
    np.testing.assert_array_equal(variables['batch_stats']['var'], np.ones(3))  # init moves nothing
    y, updated = norm.apply(variables, x, train=True, mutable=['batch_stats'])
    mean, biased = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(biased + 1e-3), rtol=1e-4, atol=1e-5)
    stats = updated['batch_stats']
    np.testing.assert_allclose(stats['mean'], 0.1 * mean, rtol=1e-5)
    unbiased = x.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(stats['var'], 0.9 + 0.1 * unbiased, rtol=1e-5)
    still = norm.apply({**variables, **updated}, x, train=False)
    expected = (x - stats['mean']) / np.sqrt(stats['var'] + 1e-3)
    np.testing.assert_allclose(still, expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_of_bfloat16_keeps_float32_statistics():
    x, norm = (100 + draw(64, 4)).astype(jnp.bfloat16), BatchNorm(dtype=jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x, train=True)
    y, updated = norm.apply(variables, x, train=True, mutable=['batch_stats'])
    assert y.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updated))


def test_batch_norm_over_a_mesh_uses_the_global_batch(tmp_path):
    (tmp_path / 'on_a_mesh.py').write_text(ON_A_MESH)
    result = run_module('on_a_mesh', devices=8, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == '8 devices agree'


# Under jit the mean over a batch sharded over eight devices is the mean over the whole batch.
ON_A_MESH = """
import jax, numpy as np
from vision.models.layers import BatchNorm
x = np.arange(8 * 2 * 2 * 3, dtype=np.float32).reshape(8, 2, 2, 3) ** 1.5
norm = BatchNorm()
variables = norm.init(jax.random.key(0), x, train=True)
mesh = jax.sharding.Mesh(np.array(jax.devices()), ('batch',))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('batch'))
run = jax.jit(lambda v, x: norm.apply(v, x, train=True, mutable=['batch_stats']))
y, updated = run(variables, jax.device_put(x, sharding))
mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)
unbiased = x.var((0, 1, 2), ddof=1)
np.testing.assert_allclose(updated['batch_stats']['var'], 0.9 + 0.1 * unbiased, rtol=1e-5)
print(len(y.sharding.device_set), 'devices agree')
"""


def test_initialisers_have_the_published_spread():
    key, shape = jax.random.key(0), (3, 3, 64, 256)
    assert np.std(he_normal(key, shape)) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.01)
    assert np.std(he_normal_fan_out(key, shape)) == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.01)
    cut = np.asarray(truncated_normal(0.1)(key, shape))
    assert np.abs(cut).max() <= 0.2
    assert np.std(cut) == pytest.approx(0.088, rel=0.01)


@pytest.mark.parametrize('layer, x', [(Conv(4, 3), draw(1, 8, 8, 3)), (Dense(4), draw(1, 3))])
def test_other_channels_than_the_parameters_have_is_one_error(layer, x):
    variables = layer.init(jax.random.key(0), x)
    with pytest.raises(UserError, match=r'parameters for 3 .* gives it 2|give it 2'):
        layer.apply(variables, x[..., :2])


@pytest.mark.parametrize('pool', [global_avg_pool, partial(power_pool, power=3.0)])
def test_pooling_after_convolutions_in_bfloat16(pool):
    """XLA of jaxlib 0.12 fuses such programs into one that reads memory never written."""
    x, kernel = draw(2, 12, 12, 64), 0.05 * draw(3, 3, 64, 64)
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    scale = np.full(64, 1.1, np.float32)

    def network(x, kernel, scale):
        y = x
        for _ in range(2):
            y = convolve(y, kernel, padding=1).astype(jnp.float32)
            y = nn.relu((y * scale + 0.1).astype(jnp.bfloat16))
        return y

    found = jax.jit(lambda *args: pool(network(*args)))(x, kernel, scale)
    expected = pool(jax.jit(network)(x, kernel, scale).astype(jnp.float32))
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=0.01, atol=1e-4)


def test_shapes_are_traced_in_one_thread_only():
    """Another thread that initialises a model meanwhile gets its initial values."""
    dense = Dense(2)
    with shapes_only(), ThreadPoolExecutor(1) as pool:
        init = pool.submit(lambda: dense.init(jax.random.key(0), jnp.ones((1, 2))))
        assert np.abs(init.result()['params']['kernel']).min() > 0
        assert not np.abs(dense.init(jax.random.key(0), jnp.ones((1, 2)))['params']['kernel']).any()

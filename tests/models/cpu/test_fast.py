"""Fast forms against `lax` for all shapes: values and gradients, sharded, scanned, rematerialised."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.processes import run_module
from tests.tiers import examples
from vision.models.cpu import fast, forms, winograd
from vision.models.layers import convolve, max_pool, xla_only

DTYPES = {jnp.float32: 1e-5, jnp.bfloat16: 3e-2}
pytestmark = pytest.mark.skipif(jax.default_backend() != 'cpu', reason='XLA has its own elsewhere')


def _with_gradients(function, *arguments):
    """Returns the value, and the gradients of its product with a fixed array."""
    value, pull = jax.vjp(function, *arguments)
    weights = jax.random.normal(jax.random.key(7), value.shape, value.dtype)
    return value, *pull(weights)


def _assert_same(function, *arguments, reference=None):
    """Checks that fast forms and XLA agree up to the rounding of the dtype.

    JAX caches traces of some functions, so `reference` must be another function object.
    """
    tolerance = DTYPES[arguments[0].dtype.type]
    got = jax.jit(partial(_with_gradients, function))(*arguments)
    with xla_only():
        expected = jax.jit(partial(_with_gradients, reference or function))(*arguments)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        assert np.abs(ours - theirs).max() <= tolerance * max(np.abs(theirs).max(), 1e-3)


def _draw(seed, shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


@examples(1)
@example((2, 9, 8), (3, 3), (2, 2), (1, 1), 1, jnp.float32)
@example((1, 2, 3), (3, 3), (1, 3), (2, 1), 2, jnp.bfloat16)  # the image is smaller than the kernel
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.sampled_from([1, 1, 2]),
    st.sampled_from(list(DTYPES)),
)
def test_convolutions(size, kernel, strides, padding, groups, dtype):
    """Images may be smaller than the kernel if the padding makes up for it."""
    assume(all(n + 2 * p >= k for n, p, k in zip(size[1:], padding, kernel, strict=True)))
    x, k = _draw(0, (*size, 4), dtype), _draw(1, (*kernel, 4 // groups, 6), dtype)
    _assert_same(lambda x, k: convolve(x, k, strides, padding, groups), x, k)


@pytest.mark.parametrize(
    ('size', 'kernel', 'strides', 'padding'),
    [
        ((6, 5), 3, 1, 1),
        ((7, 8), 5, 2, 'same'),
        ((9, 4), 3, (2, 3), 'same'),
        pytest.param((4, 9), 7, 1, 3, marks=pytest.mark.slow),
    ],
)
def test_depthwise_convolutions(size, kernel, strides, padding):
    x, k = _draw(0, (2, *size, 6)), _draw(1, (kernel, kernel, 1, 6))
    assert 'conv_general' not in str(
        jax.make_jaxpr(lambda x, k: convolve(x, k, strides, padding, 6))(x, k)
    )
    _assert_same(lambda x, k: convolve(x, k, strides, padding, 6), x, k)


@examples(2)
@given(
    st.tuples(st.integers(1, 2), st.integers(3, 9), st.integers(3, 9)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.sampled_from([(3, 5), (8, 4)]),
)
def test_winograd_has_no_smallest_shape(size, padding, channels):
    """The bounds are about speed: without them every 3 x 3 convolution uses Winograd's form."""
    x, k = _draw(0, (*size, channels[0])), _draw(1, (3, 3, *channels))
    bounds = ('CHANNELS', 'GRADIENT_CHANNELS', 'WORK')
    with pytest.MonkeyPatch.context() as patch:
        for name in bounds:
            patch.setattr(winograd, name, 0)
        assert winograd.suits(x.shape, k.shape, (1, 1), padding, x.dtype, 0)
        _assert_same(lambda x, k: convolve(x, k, 1, padding), x, k)


@examples(2)
@given(
    st.tuples(st.integers(1, 2), st.integers(5, 11), st.integers(7, 11)),
    st.one_of(st.tuples(st.integers(1, 5), st.integers(2, 5)), st.just((5, 5)), st.just((5, 7))),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.sampled_from([1, 2, 3, 6]),
)
def test_images_of_few_channels_are_convolved_by_columns(size, kernel, padding, channels):
    x, k = _draw(0, (*size, channels)), _draw(1, (*kernel, channels, 6))
    large = min(kernel) >= 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, 'has_ynn', lambda: False)
        assert forms.columns_suit(k.shape, (1, 1), x.dtype) == (channels == 1)
        assert forms.columns_suit_gradient(k.shape, (1, 1), x.dtype) == (channels <= 3 or large)
        assert forms.columns_suit_input_gradient(k.shape, (1, 1), x.dtype) == large
        _assert_same(lambda x, k: convolve(x, k, 1, padding), x, k)


@examples(2)
@given(
    st.tuples(st.integers(1, 2), st.integers(5, 11), st.integers(5, 11)),
    st.tuples(st.integers(1, 5), st.integers(2, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_kernel_gradients_by_rows(size, kernel, strides, padding):
    x, k = _draw(0, (*size, 5)), _draw(1, (*kernel, 5, 7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, 'FEATURES', 0)
        patch.setattr(forms, 'has_avx512', lambda: False)
        assert forms.rows_suit_gradient(k.shape, x.dtype)
        _assert_same(lambda x, k: convolve(x, k, strides, padding), x, k)


@examples(2)
@given(st.sampled_from([16, 20, 24, 32]), st.integers(1, 2), st.sampled_from([(1, 3), (3, 3)]))
def test_kernel_gradients_part_by_part(batch, strides, kernel):
    """A part has at least eight images: 20 images are not split."""
    x, k = _draw(0, (batch, 6, 5, 5)), _draw(1, (*kernel, 5, 7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, '_PART', 8 * 6 * 5 * 5 * 4)
        of_part, parts = fast._xla_kernel_gradient, []
        patch.setattr(fast, '_xla_kernel_gradient', lambda *args: parts.append(1) or of_part(*args))
        jax.make_jaxpr(jax.grad(lambda k: convolve(x, k, strides, 1).sum()))(k)
        assert len(parts) == {16: 1, 20: 1, 24: 3, 32: 4}[batch]
        _assert_same(lambda x, k: convolve(x, k, strides, 1), x, k)


@examples(2)
@given(
    st.tuples(st.integers(1, 2), st.integers(3, 9), st.integers(3, 9)),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 1),
    st.booleans(),
    st.sampled_from(list(DTYPES)),
)
def test_max_pools(size, window, strides, padding, ceil, dtype):
    x = _draw(0, (*size, 3), dtype)
    padding = min(padding, window // 2)
    _assert_same(lambda x: max_pool(x, window, strides, padding, ceil), x)


def test_equals_share_no_gradient_and_nothing_hides_what_is_no_number():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(jnp.nan)
    assert np.isnan(max_pool(x, 2, 2)[0, 0, 0, 0])
    _assert_same(lambda x: max_pool(x, 2, 1), jnp.ones((1, 4, 4, 1)))


def _two_layers(x, kernel):
    return max_pool(convolve(x, kernel, 1, 1), 3, 2, 1)


@pytest.mark.parametrize(
    'shape', [(2, 16, 16, 64), pytest.param((2, 16, 16, 128), marks=pytest.mark.slow)]
)
def test_large_enough_ones_are_winograd_rematerialised_and_scanned(monkeypatch, shape):
    for name, bound in [('WORK', 10**6), ('CHANNELS', 64), ('GRADIENT_CHANNELS', 96)]:
        monkeypatch.setattr(winograd, name, bound)
    x, kernel = _draw(0, shape), _draw(1, (3, 3, shape[-1], shape[-1])) / 30
    assert 'reduce_window' not in str(jax.make_jaxpr(_two_layers)(x, kernel))
    assert 'conv_general_dilated' not in str(jax.make_jaxpr(_two_layers)(x, kernel))
    _assert_same(jax.checkpoint(_two_layers), x, kernel, reference=lambda x, k: _two_layers(x, k))

    def scanned(x, kernel):
        part = jax.grad(lambda k, row: _two_layers(row[None], k).sum())
        add = lambda total, row: (total + part(kernel, row), None)  # noqa: E731
        return jax.lax.scan(add, jnp.zeros_like(kernel), x)[0]

    got = jax.jit(scanned)(x, kernel)
    with xla_only():
        expected = jax.jit(lambda x, k: scanned(x, k))(x, kernel)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_batch_on_eight_devices_is_not_gathered():
    done = run_module('tests.models.cpu.fast_on_devices', devices=8)
    assert done.returncode == 0, done.stderr

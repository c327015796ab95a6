"""EfficientNet: scaling as in the authors' code, stochastic depth, and two frameworks' padding and constants."""

import jax
import numpy as np
import pytest

from vision.core.errors import UserError
from vision.models import create_model
from vision.models.efficientnet import MBConv, round_filters, round_repeats


@pytest.mark.parametrize(
    ('width', 'expected'),
    # B2, B3 and B4 in the authors' code: stem, seven stages, top.
    [
        (1.1, (32, 16, 24, 48, 88, 120, 208, 352, 1408)),
        (1.2, (40, 24, 32, 48, 96, 136, 232, 384, 1536)),
        (1.4, (48, 24, 32, 56, 112, 160, 272, 448, 1792)),
    ],
)
def test_widths_are_the_authors(width, expected):
    channels = (32, 16, 24, 40, 80, 112, 192, 320, 1280)
    assert tuple(round_filters(c, width) for c in channels) == expected


def test_depths_are_rounded_up():
    assert [round_repeats(r, 1.1) for r in (1, 2, 3, 4)] == [2, 3, 4, 5]
    assert [round_repeats(r, 1.8) for r in (1, 2, 3, 4)] == [2, 4, 6, 8]


def test_an_image_skips_a_whole_block_and_those_that_do_not_are_scaled():
    block = MBConv(8, 3, expansion=1, drop_path=0.5, lite=True)
    x = np.random.default_rng(0).standard_normal((64, 4, 4, 8)).astype(np.float32)
    variables = block.init(jax.random.key(0), x, False)

    @jax.jit
    def run(x, key):
        full = MBConv(8, 3, expansion=1, lite=True)
        outputs = [
            m.apply(variables, x, True, rngs={'dropout': key}, mutable=['batch_stats'])[0]
            for m in (block, full)
        ]
        return [y - x for y in outputs]

    dropped, full = (np.asarray(y) for y in run(x, jax.random.key(1)))
    skipped = (dropped == 0).all((1, 2, 3))
    assert 16 < skipped.sum() < 48
    np.testing.assert_allclose(dropped[~skipped], 2 * full[~skipped], rtol=1e-4, atol=1e-5)


def test_running_statistics_follow_with_the_momentum_that_is_given():
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 8)).astype(np.float32)
    blocks = [MBConv(8, 3, expansion=1, lite=True, bn_momentum=m) for m in (None, 0.5)]
    variables = blocks[0].init(jax.random.key(0), x, False)

    @jax.jit
    def statistics(x):
        return [b.apply(variables, x, True, mutable=['batch_stats'])[1] for b in blocks]

    slow, fast = (s['batch_stats']['depthwise_bn']['mean'] for s in statistics(x))
    np.testing.assert_allclose(fast / (1 - 0.5), slow / (1 - 0.99), rtol=1e-4)


@pytest.mark.parametrize('argument', ['width', 'depth', 'resolution'])
def test_a_scale_of_nothing_is_one_line(argument):
    model = create_model('efficientnet_b0', **{argument: 0 if argument == 'resolution' else 0.0})
    with pytest.raises(UserError, match=f'{argument}=0.* is not above 0'):
        model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False)


@pytest.mark.slow
def test_frameworks_differ_in_what_they_pad():
    x = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    models = [create_model('efficientnet_lite0', framework=f) for f in ('tensorflow', 'torch')]

    @jax.jit
    def run(x):
        variables = models[0].init(jax.random.key(0), x, train=False)
        return [m.apply(variables, x, train=False)[0] for m in models]

    tensorflow, torch = run(x)
    assert np.abs(tensorflow - torch).max() > 1e-3 * np.abs(torch).max()

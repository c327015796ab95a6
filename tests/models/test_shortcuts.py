"""Shortcuts of residual blocks: each option, and the plain network without shortcuts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision.models import create_model
from vision.models.resnet import BLOCKS

KEY = jax.random.key(0)


def names(variables):
    paths = jax.tree_util.tree_leaves_with_path(variables['params'])
    return ['/'.join(k.key for k in path) for path, _ in paths]


# A and 'none' have the parameters of table 6. A projection adds 1x1 weights, a scale and a bias.
@pytest.mark.parametrize(
    ('shortcut', 'projections'),
    [('none', []), ('A', []), ('B', [(16, 32), (32, 64)]), ('D', [(16, 32), (32, 64)]),
     ('C', [(16, 16)] * 3 + [(16, 32)] + [(32, 32)] * 2 + [(32, 64)] + [(64, 64)] * 2)],
)  # fmt: skip
def test_a_shortcut_has_the_parameters_of_its_projections(shortcut, projections):
    model = create_model('resnet20', num_classes=10, shortcut=shortcut)
    variables = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables['params']))
    assert count == 269_722 + sum(a * b + 2 * b for a, b in projections)
    assert sum('shortcut_conv' in name for name in names(variables)) == len(projections)
    assert ('shortcut' in ' '.join(names(variables))) == bool(projections)


@pytest.mark.parametrize('kind', BLOCKS)
def test_a_plain_block_passes_on_nothing_but_its_convolutions(kind):
    cls = BLOCKS[kind]
    x = jax.random.normal(KEY, (2, 6, 6, 8 * cls.expansion))
    plain, residual = (cls(8, shortcut=s) for s in ('none', 'A'))
    variables = residual.init(KEY, x, train=False)
    assert names(variables) == names(plain.init(KEY, x, train=False))
    got = plain.apply(variables, x, train=False)
    assert (np.asarray(got) > 0).any()
    # Where the residual is negative, the plain block is 0 and the other x + y.
    assert not np.allclose(got, residual.apply(variables, x, train=False))
    silent = jax.tree.map(jnp.zeros_like, variables)
    np.testing.assert_array_equal(plain.apply(silent, x, train=False), 0)
    np.testing.assert_array_equal(residual.apply(silent, x, train=False), np.maximum(x, 0))


def test_a_plain_network_answers_otherwise_with_the_same_parameters():
    models = [create_model('resnet20', stage_sizes=(1, 1), shortcut=s) for s in ('none', 'A')]
    images = jax.random.normal(KEY, (2, 8, 8, 3))

    @jax.jit
    def answers():
        variables = models[0].init(KEY, images, train=False)
        return [model.apply(variables, images, train=False)[0] for model in models]

    plain, residual = answers()
    assert np.isfinite(plain).all() and np.abs(plain - residual).max() > 1e-3

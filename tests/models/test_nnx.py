"""NNX modules named in a config: trained, saved, evaluated and predicted with like linen modules."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from tests.training.tiny import tiny_config
from vision.core.errors import UserError
from vision.evaluation.run import load_run
from vision.models import create_model
from vision.models.base import check_contract, init_variables
from vision.prediction import Classifier
from vision.training import train


class Net(nnx.Module):
    """Two convolutions in a list, batch normalisation and dropout."""

    def __init__(self, num_classes: int, width: int = 4, dtype=jnp.float32, *, rngs: nnx.Rngs):
        self.convs = nnx.List(
            nnx.Conv(c, width, (5, 5), strides=4, dtype=dtype, rngs=rngs) for c in (1, width)
        )
        self.norm = nnx.BatchNorm(width, momentum=0.9, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4 * width, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, images, train):
        for conv in self.convs:
            images = nnx.relu(conv(images))
        x = self.dropout(self.norm(images)).reshape(len(images), -1)
        return self.head(x).astype(jnp.float32), {'features': x}


class WithoutDtype(Net):
    """Computes in float32."""

    def __init__(self, num_classes: int, *, rngs: nnx.Rngs):
        super().__init__(num_classes, rngs=rngs)


class WithoutClasses(nnx.Module):
    """Has no `num_classes`."""

    def __init__(self, dtype, rngs):
        pass


class WithoutRngs(nnx.Module):
    """Has no `rngs`."""

    def __init__(self, num_classes, dtype):
        pass


class WithoutTrain(Net):
    """Takes no `train`."""

    def __call__(self, images):
        return super().__call__(images, train=False)


class WithoutEndpoints(Net):
    """Returns only logits."""

    def __call__(self, images, train):
        return super().__call__(images, train)[0]


class WithCache(Net):
    """Has a variable that is neither a parameter nor a running statistic."""

    def __init__(self, num_classes: int, *, rngs: nnx.Rngs):
        super().__init__(num_classes, rngs=rngs)
        self.seen = nnx.Cache(jnp.zeros(3))


class WithDemand(Net):
    """Has an argument without a default."""

    def __init__(self, num_classes: int, depth: int, *, rngs: nnx.Rngs):
        super().__init__(num_classes, rngs=rngs)


IMAGES = np.random.default_rng(0).standard_normal((4, 32, 32, 1)).astype(np.float32)


def test_variables_modes_and_statistics_are_those_of_linen():
    model = create_model(f'{__name__}:Net', num_classes=3, width=6)
    assert model.num_classes == 3

    @jax.jit
    def run(x):
        variables = init_variables(model, (32, 32, 1), jax.random.key(0))
        trained = [
            model.apply(variables, x, train=True, rngs={'dropout': key}, mutable=['batch_stats'])
            for key in jax.random.split(jax.random.key(1))
        ]
        return variables, trained, [model.apply(variables, x, train=False)[0] for _ in range(2)]

    variables, trained, evaluated = run(IMAGES)
    paths = {'/'.join(path) for path in flatten_dict(variables['params'])}
    assert {'convs/0/kernel', 'convs/1/bias', 'norm/scale', 'head/kernel'} < paths
    stats = variables['batch_stats']['norm']
    assert (stats['mean'] == 0).all() and (stats['var'] == 1).all()
    # Training draws a dropout mask from each key and moves the statistics; evaluation does neither.
    (((first, _), updated), ((second, _), _)) = trained
    assert np.abs(first - second).max() > 1e-3
    assert np.abs(updated['batch_stats']['norm']['mean']).max() > 0
    np.testing.assert_array_equal(*evaluated)


@pytest.mark.parametrize(
    ('name', 'arguments', 'says'),
    [
        ('Net', {'widht': 3}, "'widht'. Did you mean 'width'"),
        ('Net', {'rngs': 3}, "unknown argument of model .* 'rngs'"),
        ('WithoutDtype', {'dtype': 'bfloat16'}, 'takes no dtype, so it computes in float32 only'),
        ('WithoutClasses', {}, 'must take num_classes and rngs'),
        ('WithoutRngs', {}, 'must take num_classes and rngs'),
        ('WithDemand', {}, "missing a required argument: 'depth'; set it in config.model"),
        ('WithoutTrain', {}, r'WithoutTrain cannot be called as model\(images, train='),
        ('WithoutEndpoints', {}, r'WithoutEndpoints must return \(logits, endpoints\)'),
        ('WithCache', {}, "WithCache: seen has variables of the collection 'cache'"),
    ],
)
def test_what_a_class_lacks_is_one_line(name, arguments, says):
    with pytest.raises(UserError, match=says) as error:
        check_contract(create_model(f'{__name__}:{name}', **arguments), (32, 32, 1))
    assert '\n' not in str(error.value)


def test_a_class_without_dtype_computes_in_float32():
    check_contract(create_model(f'{__name__}:WithoutDtype', num_classes=3), (32, 32, 1))


def test_an_argument_of_a_linen_module_that_is_missing_is_one_line():
    with pytest.raises(UserError, match=r"Linen': missing a required argument: 'depth'"):
        create_model(f'{__name__}:Linen')


class Linen(nn.Module):
    """Has an argument without a default."""

    num_classes: int
    dtype: object
    depth: int


@pytest.mark.slow
def test_a_run_is_trained_loaded_and_predicted_with(tmp_path):
    config = tiny_config()
    config.model = {'name': f'{__name__}:Net'}
    config.training.duration = '30 steps'
    results = train(config, tmp_path)
    assert results['test']['top1'] > 0.2  # one of ten classes by chance
    assert train(config, tmp_path) == results  # it is restored
    run = load_run(tmp_path)
    assert np.abs(run.variables['batch_stats']['norm']['mean']).max() > 0
    probabilities = Classifier(run)(np.zeros((2, *run.image_shape), np.uint8))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)

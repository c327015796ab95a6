"""The registry: uniform arguments and outputs, and a clear error for each mistake."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.common import DEEP, FAMILIES, NARROW, shapes_of
from tests.processes import FULL_EFFORT
from tests.tiers import split
from vision.core.errors import UserError
from vision.models import MODELS, create_model
from vision.models.base import ImageModel, abstract_variables, check_contract
from vision.models.layers import Dense
from vision.models.summary import default_model, summarise


class MyModel(ImageModel):
    """A user-defined model, named by 'module:Class'."""

    width: int = 8

    @nn.compact
    def __call__(self, images, train):
        endpoints = {}
        x = nn.relu(Dense(self.width, dtype=self.dtype)(images.mean((1, 2))))
        x = self.record(endpoints, 'features', x)
        return Dense(self.num_classes, output_dtype=jnp.float32, name='head')(x), endpoints


def my_function(num_classes, dtype, width=4):
    return MyModel(num_classes, dtype, width=width)


def not_a_model(num_classes, dtype):
    return 'a string'


@pytest.mark.parametrize('name', [f'{__name__}:MyModel', f'{__name__}:my_function'])
def test_a_users_own_model_needs_no_line_in_the_registry(name):
    model = create_model(name, num_classes=5, width=6)
    assert (model.num_classes, model.width) == (5, 6)
    check_contract(model, (8, 8, 3))


@pytest.mark.parametrize(
    'name, arguments, says',
    [
        ('resnet51', {}, r"unknown model 'resnet51'.* Did you mean 'resnet5.'\?$"),
        (
            'resnet50',
            {'stm': 'small'},
            "argument of model 'resnet50' 'stm'. Did you mean 'stem'.*Known: .*remat",
        ),
        ('resnet50', {'stem': 'tiny'}, "stem='tiny' is not one of 'imagenet', 'small'"),
        ('resnet50', {'remat': 1}, 'remat=1 is not of type bool'),
        ('alexnet', {'dropout': 'half'}, "dropout='half' is not of type float"),
        ('lenet5', {'padding': 1}, 'padding=1 is not one of 0, 2'),
        ('lenet5', {'num_classes': 0}, 'num_classes=0'),
        ('lenet5', {'num_classes': '10'}, "num_classes='10' is not of type int"),
        ('lenet5', {'dtype': 'float17'}, "dtype 'float17'"),
        ('lenet5', {'dtype': 'int32'}, 'dtype int32'),
        ('no.such.module:Class', {}, "cannot import 'no.such.module'"),
        (f'{__name__}:Missing', {}, "has no 'Missing'"),
        (f'{__name__}:DEEP', {}, 'must be a class or function, not tuple'),
        (f'{__name__}:not_a_model', {}, 'must be a Flax module, not str'),
        ('flax.linen:Sequential', {}, 'must take num_classes and dtype'),
        (f'{__name__}:MyModel', {'widht': 3}, "'widht'. Did you mean 'width'"),
    ],
)
def test_a_mistake_in_the_config_is_one_line(name, arguments, says):
    with pytest.raises(UserError, match=says) as error:
        create_model(name, **arguments)
    assert '\n' not in str(error.value)


def apply_abstractly(name, shape, dtype=jnp.float32, train=False, **kwargs):
    model, _ = default_model(name, **kwargs)
    variables = shapes_of(name)
    image = jax.ShapeDtypeStruct((2, *shape), dtype)
    rngs = {'dropout': jax.random.key(0)}
    return jax.eval_shape(
        lambda v, x: model.apply(v, x, train=train, mutable=['batch_stats'], rngs=rngs),
        variables,
        image,
    )


@pytest.mark.parametrize('name', split([n for n in MODELS if n not in DEEP], FAMILIES))
@pytest.mark.parametrize('case', ['small', 'channels', 'integers', 'rank'])
def test_bad_images_are_one_clear_error(name, case):
    size, _, channels = default_model(name)[1]
    shape, dtype, says = {
        'small': ((3, 3, channels), jnp.float32, 'not 3x3'),
        'channels': ((size, size, channels + 1), jnp.float32, 'channels'),
        'integers': ((size, size, channels), jnp.uint8, 'float images, not uint8'),
        'rank': ((size, channels), jnp.float32, r'\[B, H, W, C\]'),
    }[case]
    with pytest.raises(UserError, match=says) as error:
        apply_abstractly(name, shape, dtype)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['alexnet_2012', 'lenet5'])
def test_a_size_that_the_hidden_layers_were_not_made_for_is_one_error(name):
    with pytest.raises(UserError, match=r'parameters for \d+ values|images of 32x32, not 160x160'):
        apply_abstractly(name, (160, 160, default_model(name)[1][2]))


def test_dense_evaluation_takes_any_size_from_the_papers_and_means_over_positions():
    (logits, endpoints), _ = apply_abstractly('vgg_d', (256, 320, 3))
    assert logits.shape == (2, 1000)
    assert endpoints['features'].shape == (2, 4096)
    with pytest.raises(UserError, match='224x224 and larger'):
        apply_abstractly('vgg_d', (192, 192, 3))


@pytest.mark.parametrize(
    ('name', 'options', 'smallest'),
    split(
        [
            ('alexnet', {}, 63),
            ('alexnet_2012', {}, 67),
            ('vgg_a', {}, 32),
            ('vgg11_bn', {'stem': 'small'}, 1),
            ('googlenet_2014', {}, 79),
            ('googlenet_2014', {'stem': 'small'}, 10),
            ('googlenet_2014', {'aux_heads': False}, 32),
            ('googlenet', {}, 32),
            ('googlenet', {'stem': 'small'}, 4),
            ('inception_v3', {'aux_heads': False}, 75),
            ('inception_v3', {'stem': 'small'}, 23),
            ('resnet18', {}, 32),
            ('resnet20', {}, 4),
            ('resnet50', {'stem': 'small'}, 8),
            ('resnet50_v2', {}, 32),
            ('efficientnet_b0', {}, 32),
            ('efficientnet_lite0', {'stem': 'small'}, 16),
            ('resnet50d', {}, 32),
            ('convnext_tiny', {}, 32),
            ('convnext_tiny', {'stem': 'small'}, 8),
        ],
        [
            ('alexnet_2012', {}, 67),
            ('vgg_a', {}, 32),
            ('vgg11_bn', {'stem': 'small'}, 1),
            ('googlenet_2014', {'stem': 'small'}, 10),
            ('googlenet', {'stem': 'small'}, 4),
            ('inception_v3', {'stem': 'small'}, 23),
            ('resnet18', {}, 32),
            ('resnet20', {}, 4),
            ('resnet50_v2', {}, 32),
        ],
    ),
)
def test_the_smallest_image_leaves_no_array_empty(name, options, smallest):
    model = create_model(name, num_classes=3, **options)

    def everything(size):
        images = jnp.zeros((1, size, size, 3))
        return jax.eval_shape(lambda: model.init_with_output(rngs, images, train=True))

    rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(0)}
    assert all(leaf.size for leaf in jax.tree.leaves(everything(smallest)))
    with pytest.raises(UserError, match=f'{smallest}x{smallest} and larger|shape'):
        everything(smallest - 1)


def test_the_auxiliary_head_names_the_size_that_it_needs():
    model = create_model('inception_v3')
    with pytest.raises(UserError, match=r'299x299 and larger.*aux_heads=False'):
        jax.eval_shape(
            lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=True)
        )


@pytest.mark.parametrize('name', split([n for n in MODELS if n not in DEEP], FAMILIES))
def test_every_model_keeps_the_contract_in_bfloat16(name):
    model, shape = default_model(name, dtype='bfloat16')
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes_of(name)))
    logits, endpoints = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=False),
        shapes_of(name),
        jax.ShapeDtypeStruct((2, *shape), jnp.float32),
    )
    assert (logits.shape, logits.dtype) == ((2, model.num_classes), jnp.float32)
    assert endpoints['features'].ndim == 2
    assert all(leaf.dtype == jnp.bfloat16 for leaf in endpoints.values())


@pytest.mark.parametrize('name', ['lenet5_1998', 'alexnet_2012', 'vgg11_bn', 'resnet20'])
def test_bfloat16_keeps_float32_parameters(name):
    model, shape = default_model(name, dtype='bfloat16')
    check_contract(model, shape)
    variables = abstract_variables(model, shape)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    'name', split(['googlenet', 'googlenet_2014', 'inception_v3'], ['googlenet'])
)
def test_auxiliary_heads_exist_in_training_only(name):
    model = create_model(name, num_classes=7, stem='small')
    x, rngs = jnp.zeros((2, 32, 32, 3)), {'params': jax.random.key(0), 'dropout': jax.random.key(1)}

    def run(train):
        return jax.eval_shape(lambda: model.init_with_output(rngs, x, train=train))

    (_, trained), variables = run(True)
    (_, evaluated), same = run(False)
    assert jax.tree.structure(variables['params']) == jax.tree.structure(same['params'])
    heads = 1 if name == 'inception_v3' else 2
    assert [a.shape for a in trained['aux']] == [(2, 7)] * heads
    assert all(a.dtype == jnp.float32 for a in trained['aux'])
    assert 'aux' not in evaluated
    without = create_model(name, stem='small', aux_heads=False)
    params = jax.eval_shape(lambda: without.init(rngs, x, train=True))['params']
    assert not any(layer.lower().startswith('aux') for layer in params)


@pytest.mark.parametrize(
    'name',
    split(
        ['alexnet', 'alexnet_2012', 'vgg11', 'vgg_a', 'googlenet', 'googlenet_2014']
        + [
            'inception_v3',
            'resnet50',
            'resnet50_v2',
            'efficientnet_b0',
            'sscd_resnet50',
            'convnext_tiny',
        ],
        ['alexnet', 'vgg_a', 'googlenet', 'resnet50', 'resnet50_v2'],
    ),
)
@pytest.mark.parametrize('size', split([28, 32], [28]))
def test_the_small_stem_takes_28_and_32_px_of_grey(name, size):
    model = create_model(name, num_classes=10, stem='small')
    rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    (logits, _), _ = jax.eval_shape(
        lambda: model.init_with_output(rngs, jnp.zeros((2, size, size, 1)), train=True)
    )
    assert logits.shape == (2, 10)


REMAT = {
    'resnet20': {'stage_sizes': (1, 1)},
    'resnet110_v2': {'stage_sizes': (1, 1, 1)},
    'googlenet': {'stem': 'small', 'dropout': 0.0, 'aux_dropout': 0.0},
    'inception_v3': {'stem': 'small', 'dropout': 0.0},
    'efficientnet_b0': {'stem': 'small', 'depth': 0.1, 'dropout': 0.0, 'drop_path': 0.0},
    'convnext_tiny': {'stage_sizes': (1, 1), 'widths': (8, 16), 'drop_path': 0.0},
    'vit_s16': NARROW['vit_s16'],
    **{n: NARROW[n] for n in ('seresnet50', 'resnet50d', 'wide_resnet40_4', 'sscd_resnet50')},
}


def remat_pair(name):
    """Returns initialisation and gradients of the model without and with remat."""
    rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    models = [
        create_model(name, num_classes=3, remat=remat, **REMAT[name]) for remat in (False, True)
    ]

    def gradients(model):
        def loss(params, stats, x):
            variables = {'params': params, 'batch_stats': stats}
            (logits, _), _ = model.apply(variables, x, train=True, mutable=['batch_stats'])
            return jnp.square(logits).sum()

        return jax.grad(loss)

    init = [lambda x, m=m: m.init(rngs, x, train=True) for m in models]
    return init, [gradients(m) for m in models]


@pytest.mark.parametrize('name', split(REMAT, ('resnet20',)))
def test_remat_is_in_the_program_and_not_in_the_parameters(name):
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    init, gradients = remat_pair(name)
    plain, remat = (jax.eval_shape(i, x) for i in init)
    assert jax.tree.structure(plain) == jax.tree.structure(remat)
    program = jax.make_jaxpr(gradients[1])(plain['params'], plain.get('batch_stats', {}), x)
    assert 'remat' in str(program) or 'checkpoint' in str(program)


@pytest.mark.parametrize('name', split(REMAT, ('resnet20',)))
def test_remat_changes_no_gradient(name):
    size = 8 if name in ('resnet20', 'resnet110_v2') else 32
    x = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    init, gradients = remat_pair(name)
    variables = jax.jit(init[0])(x)
    args = (variables['params'], variables.get('batch_stats', {}), x)
    # The low compiler effort of other tests rounds more coarsely.
    options = FULL_EFFORT if name.startswith(('inception', 'efficientnet')) else None
    expected, got = (jax.jit(g, compiler_options=options)(*args) for g in gradients)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        assert np.abs(a - b).max() <= 1e-3 * np.abs(a).max() + 1e-5


def test_gradients_with_respect_to_a_stage_can_be_had():
    model = create_model('resnet20', num_classes=3, stage_sizes=(1, 1, 1))
    x = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(x)
    assert set(variables) == {'params', 'batch_stats', 'perturbations'}

    def score(perturbations):
        return model.apply({**variables, 'perturbations': perturbations}, x, train=False)[0][0, 1]

    gradient = jax.jit(jax.grad(score))(variables['perturbations'])
    assert set(gradient) == {'stem', 'stage1', 'stage2', 'stage3', 'features'}
    np.testing.assert_allclose(
        gradient['features'][0], variables['params']['fc']['kernel'][:, 1], rtol=1e-5
    )
    assert gradient['stage3'].shape == (1, 8, 8, 64)
    assert np.abs(gradient['stem']).max() > 0


class NoEndpoints(nn.Module):
    """A user-defined model that returns only logits."""

    num_classes: int
    dtype: object

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes)(images.mean((1, 2)))


def test_the_table_of_a_model_that_breaks_the_contract_is_one_error():
    assert summarise(f'{__name__}:MyModel', 8).parameters > 0
    with pytest.raises(UserError, match=r'NoEndpoints must return \(logits, endpoints\)'):
        summarise(f'{__name__}:NoEndpoints', 8)


def test_a_model_that_breaks_the_contract_is_refused():
    class HalfLogits(nn.Module):
        num_classes: int = 3

        @nn.compact
        def __call__(self, images, train):
            x = images.mean((1, 2)).astype(jnp.bfloat16)
            return nn.Dense(self.num_classes, dtype=jnp.bfloat16)(x), {'features': x}

    class NoFeatures(nn.Module):
        num_classes: int = 3

        @nn.compact
        def __call__(self, images, train):
            return nn.Dense(self.num_classes)(images.mean((1, 2))), {}

    class NoPair(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return nn.Dense(3)(images.mean((1, 2)))

    class NoArray(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return {'logits': nn.Dense(3)(images.mean((1, 2)))}, {}

    class NoTrain(nn.Module):
        @nn.compact
        def __call__(self, images):
            return nn.Dense(3)(images.mean((1, 2))), {}

    for model, says in (
        (HalfLogits(), 'float32 logits'),
        (NoFeatures(), 'features'),
        (NoPair(), 'logits, endpoints'),
        (NoArray(), 'float32 logits .* not dict'),
        (NoTrain(), 'train'),
    ):
        with pytest.raises(UserError, match=says):
            check_contract(model, (8, 8, 3))

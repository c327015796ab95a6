"""Optimizers against the papers' formulas in NumPy; weight decay, clipping, learning rate factors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.tiers import split
from tests.training.tiny import build_optimizer
from vision.core import config as config_lib
from vision.core.config import default_config
from vision.core.errors import UserError
from vision.training import optimizer as optimizer_lib
from vision.training.optimizer import OPTIMIZERS, RateFactors, check_pattern

RNG = np.random.default_rng(0)
PARAMS = {
    'conv1': {'kernel': RNG.normal(size=(3, 3, 2, 4)), 'bias': RNG.normal(size=4)},
    'bn1': {'scale': RNG.normal(size=4), 'bias': RNG.normal(size=4)},
    'fc': {'kernel': RNG.normal(size=(4, 3)), 'bias': RNG.normal(size=3)},
}
GRADIENTS = [jax.tree.map(lambda p: RNG.normal(size=p.shape), PARAMS) for _ in range(3)]
RATES = [0.1, 0.05, 0.025]
SHARING = ('dadapt_adamw', 'dog', 'dowg', 'momo', 'momo_adam', 'prodigy')


def schedule(step):
    return jnp.asarray(RATES)[step]


def config_of(name, changes):
    config = default_config()
    if name != 'sgd':
        del config.optimizer['momentum'], config.optimizer['nesterov']
    config.optimizer.name = name
    with config.unlocked():
        config.update_from_flattened_dict(
            {k: v for k, v in changes.items() if not k.startswith('optimizer.')}
        )
        for key, value in changes.items():
            if key.startswith('optimizer.'):  # of any type: what is given is to be checked
                argument = key.split('.')[1]
                if argument in config.optimizer:
                    del config.optimizer[argument]
                config.optimizer[argument] = value
    return config


def train(name, gradients=GRADIENTS, params=PARAMS, **changes):
    """Returns the parameters after one step per gradient; '__' in config keys stands for '.'."""
    config = config_of(name, {k.replace('__', '.'): v for k, v in changes.items()})
    optimizer = build_optimizer(config, schedule)
    params = jax.tree.map(jnp.float32, params)
    optimizer_lib.check_optimizer(config.optimizer, optimizer, params)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        gradient = jax.tree.map(jnp.float32, gradient)
        updates, state = update(gradient, state, params, value=jnp.float32(1))
        params = optax.apply_updates(params, updates)
    return params


def by_hand(rule, decays=lambda path: path[-1].key == 'kernel'):
    """Runs `rule(parameter, gradients, decays)` in float64 on each parameter separately."""
    return jax.tree_util.tree_map_with_path(
        lambda path, p, *gradients: rule(p, gradients, float(decays(path))), PARAMS, *GRADIENTS
    )


def assert_close(got, expected, **kwargs):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **({'rtol': 2e-5, 'atol': 2e-6} | kwargs)),
        got,
        expected,
    )


@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('form', ['default', 'l2'])
def test_sgd_with_momentum_and_l2(nesterov, form):
    """Sutskever et al. 2013, section 2, with the learning rate multiplying the velocity."""

    def rule(p, gradients, decays):
        velocity = 0.0
        for rate, g in zip(RATES, gradients, strict=True):
            g = g + 0.01 * decays * p
            velocity = 0.9 * velocity + g
            p = p - rate * (g + 0.9 * velocity if nesterov else velocity)
        return p

    got = train('sgd', optimizer__nesterov=nesterov, weight_decay=0.01, weight_decay_form=form)
    assert_close(got, by_hand(rule))


def test_decoupled_decay_is_sgdws():
    """Loshchilov and Hutter 2019, algorithm 1: the decay is not part of the velocity."""

    def rule(p, gradients, decays):
        velocity = 0.0
        for rate, g in zip(RATES, gradients, strict=True):
            velocity = 0.9 * velocity + g
            p = p - rate * velocity - rate * 0.1 * decays * p
        return p

    assert_close(train('sgd', weight_decay=0.1, weight_decay_form='decoupled'), by_hand(rule))


@pytest.mark.parametrize(
    ('where', 'form'),
    [
        ('weight_decay', 'default'),
        ('weight_decay', 'decoupled'),
        ('optimizer__weight_decay', 'default'),
    ],
)
def test_adamw(where, form):
    """Loshchilov and Hutter 2019, algorithm 2, for each way to give the decay; biases do not decay."""

    def rule(p, gradients, decays):
        m = v = 0.0
        for t, (rate, g) in enumerate(zip(RATES, gradients, strict=True), 1):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            direction = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            p = p - rate * (direction + 0.05 * decays * p)
        return p

    assert_close(train('adamw', **{where: 0.05, 'weight_decay_form': form}), by_hand(rule))


def test_adam_with_l2_and_adamw_without_decay_are_adam():
    got = train('adamw', weight_decay=0.05, weight_decay_form='l2')
    assert_close(got, train('adam', weight_decay=0.05), rtol=1e-6)
    assert_close(train('adamw'), train('adam'), rtol=1e-6)


def test_rmsprop_has_epsilon_inside_the_root():
    """Szegedy et al. 2015b, section 8: decay .9, ε 1; TensorFlow's form, lr within the momentum."""

    def rule(p, gradients, decays):
        square = velocity = 0.0
        for rate, g in zip(RATES, gradients, strict=True):
            square = 0.9 * square + 0.1 * g**2
            velocity = 0.9 * velocity + rate * g / np.sqrt(square + 1.0)
            p = p - velocity
        return p

    got = train('rmsprop', optimizer__decay=0.9, optimizer__eps=1.0, optimizer__momentum=0.9)
    assert_close(got, by_hand(rule))


def test_lars():
    """You et al. 2017, algorithm 1: learning rate by layer from the ratio of norms, decay included."""

    def rule(p, gradients, decays):
        velocity = 0.0
        for rate, g in zip(RATES, gradients, strict=True):
            g = g + 0.01 * decays * p
            ratio = 0.001 * np.linalg.norm(p) / np.linalg.norm(g)
            velocity = 0.9 * velocity + rate * ratio * g
            p = p - velocity
        return p

    assert_close(train('lars', weight_decay=0.01), by_hand(rule))


def test_lamb():
    """You et al. 2020, algorithm 2: the trust ratio covers Adam's direction and the decay."""

    def rule(p, gradients, decays):
        m = v = 0.0
        for t, (rate, g) in enumerate(zip(RATES, gradients, strict=True), 1):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            r = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6) + 0.01 * decays * p
            p = p - rate * np.linalg.norm(p) / np.linalg.norm(r) * r
        return p

    assert_close(train('lamb', weight_decay=0.01), by_hand(rule), rtol=1e-4)


def test_lamb_masked():
    """apex's FusedLAMB and timm's Lamb: the norm clipped at 1, no trust ratio without decay."""
    norms = [np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(tree))) for tree in GRADIENTS]

    def rule(p, gradients, decays):
        m = v = 0.0
        for t, (rate, norm, g) in enumerate(zip(RATES, norms, gradients, strict=True), 1):
            g = g / max(norm, 1.0)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            r = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6) + 0.01 * decays * p
            p = p - rate * (np.linalg.norm(p) / np.linalg.norm(r) if decays else 1.0) * r
        return p

    got = train('lamb_masked', weight_decay=0.01, optimizer__clip_norm=1.0)
    assert_close(got, by_hand(rule), rtol=1e-4)


# Optimizers of the papers and of current recipes; compiling each takes most of the time.
QUICK = ('sgd', 'adam', 'adamw', 'nadamw', 'rmsprop', 'lamb', 'lars', 'lion', 'adafactor', 'muon',
         'prodigy', 'adagrad', 'sm3')  # fmt: skip


@pytest.mark.parametrize('name', split(OPTIMIZERS, QUICK))
def test_every_optimizer_moves_and_decays_what_the_pattern_names(name):
    """With and without decay, kernels end at different values and all others at the same."""
    two = [{'fc': g['fc']} for g in GRADIENTS[:2]]  # adopt's first step changes nothing
    first = {'fc': PARAMS['fc']}
    plain, decayed = train(name, two, first), train(name, two, first, weight_decay=0.5)
    for key, before in first['fc'].items():
        a, b = plain['fc'][key], decayed['fc'][key]
        assert np.isfinite(a).all() and np.isfinite(b).all() and np.abs(a - before).max() > 0
        # Some optimizers share statistics between parameters, so that one decay affects all.
        if key == 'kernel' or name not in SHARING:
            assert (np.abs(a - b).max() > 0) == (key == 'kernel')


def test_decay_by_a_pattern_on_names():
    got = train('sgd', weight_decay=0.5, weight_decay_pattern='^fc/')
    plain = train('sgd')
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), got, plain)
    assert same == {
        'conv1': {'kernel': True, 'bias': True},
        'bn1': {'scale': True, 'bias': True},
        'fc': {'kernel': False, 'bias': False},
    }


def test_clipping_by_the_global_norm():
    """Pascanu et al. 2013, algorithm 1: over all parameters, before the decay."""
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(GRADIENTS[0])))
    clipped = jax.tree.map(lambda g: g * 2 / norm, GRADIENTS[0])
    got = train('sgd', GRADIENTS[:1], optimizer__clip_norm=2.0, weight_decay=0.1)
    assert_close(got, train('sgd', [clipped], weight_decay=0.1))
    untouched = train('sgd', GRADIENTS[:1], optimizer__clip_norm=2 * norm)
    assert_close(untouched, train('sgd', GRADIENTS[:1]), rtol=0, atol=0)


def test_clipping_by_value():
    clipped = jax.tree.map(lambda g: np.clip(g, -0.3, 0.3), GRADIENTS[0])
    got = train('sgd', GRADIENTS[:1], optimizer__clip_value=0.3)
    assert_close(got, train('sgd', [clipped]))


def test_what_is_frozen_stays_has_no_state_and_counts_in_no_norm():
    config = config_of('adam', {'freeze': '^conv1|bn', 'optimizer.clip_norm': 1.0})
    optimizer = build_optimizer(config, schedule)
    params = jax.tree.map(jnp.float32, PARAMS)
    state = optimizer.init(params)
    sizes = sorted(x.size for x in jax.tree.leaves(state) if x.size > 1)
    assert sizes == [3, 3, 12, 12]  # both moments of fc
    updates, _ = optimizer.update(jax.tree.map(jnp.float32, GRADIENTS[0]), state, params)
    assert not any(np.any(u) for u in jax.tree.leaves((updates['conv1'], updates['bn1'])))
    alone = {'fc': params['fc']}
    only = build_optimizer(config_of('adam', {'optimizer.clip_norm': 1.0}), schedule)
    expected, _ = only.update(
        jax.tree.map(jnp.float32, {'fc': GRADIENTS[0]['fc']}), only.init(alone), alone
    )
    assert_close(updates['fc'], expected['fc'], rtol=1e-6)


@pytest.mark.parametrize('name', ['sgd', 'adamw', 'rmsprop', 'lamb'])
def test_a_factor_scales_the_rate_and_the_first_pattern_counts(name):
    factors = (('^conv1', 0.1), ('kernel', 0.5), ('conv1.kernel', 2.0))
    config = config_of(name, {'weight_decay': 0.1})
    config.lr_factors = factors
    optimizer, plain = build_optimizer(config, schedule), config_of(name, {'weight_decay': 0.1})
    params = jax.tree.map(jnp.float32, PARAMS)
    gradient = jax.tree.map(jnp.float32, GRADIENTS[0])
    got, _ = optimizer.update(gradient, optimizer.init(params), params)
    optimizer = build_optimizer(plain, schedule)
    full, _ = optimizer.update(gradient, optimizer.init(params), params)
    expected = {
        'conv1': jax.tree.map(lambda u: 0.1 * u, full['conv1']),
        'bn1': full['bn1'],
        'fc': {'kernel': 0.5 * full['fc']['kernel'], 'bias': full['fc']['bias']},
    }
    assert_close(got, expected, rtol=1e-6)


def test_another_optimizer_need_not_know_sgds_defaults():
    config = default_config()
    config.optimizer.name = 'adam'
    build_optimizer(config, schedule)
    config.optimizer.momentum = 0.8
    with pytest.raises(UserError, match="unknown argument of optimizer 'adam' 'momentum'"):
        build_optimizer(config, schedule)


@pytest.mark.parametrize(
    ('name', 'changes', 'says'),
    [
        ('sdg', {}, "Did you mean 'sgd'"),
        ('sgd', {'optimizer.momentun': 0.9}, "Did you mean 'momentum'"),
        ('sgd', {'optimizer.momentum': 'big'}, r'must be in \[0, 1\)'),
        ('sgd', {'optimizer.momentum': 1.5}, r'must be in \[0, 1\)'),
        ('sgd', {'optimizer.nesterov': 'yes'}, 'must be True or False'),
        ('adam', {'optimizer.b2': 1.0}, r'must be in \[0, 1\)'),
        ('adam', {'optimizer.eps': -1e-8}, 'eps=-1e-08 must be'),
        ('adam', {'optimizer.mu_dtype': 'float99'}, 'float99'),
        ('adamw', {'optimizer.mask': True}, "unknown argument of optimizer 'adamw' 'mask'"),
        ('adamw', {'optimizer.weight_decay': 0.1, 'weight_decay': 0.1}, 'given twice'),
        ('adamw', {'optimizer.weight_decay': -0.1}, 'weight_decay=-0.1 must be'),
        (
            'adamw',
            {'optimizer.weight_decay': 0.1, 'weight_decay_form': 'decoupled'},
            'set weight_decay=0.1 instead',
        ),
        ('sgd', {'optimizer.weight_decay': 0.1}, 'set weight_decay=0.1 instead'),
        ('novograd', {'optimizer.weight_decay': 0.1}, 'set weight_decay=0.1 instead'),
        ('sgd', {'weight_decay_form': 'l1'}, 'decoupled'),
        ('sgd', {'weight_decay': 0.1, 'weight_decay_pattern': '('}, 'not a regular expression'),
        ('sgd', {'freeze': '('}, 'not a regular expression'),
    ],
)
def test_what_makes_no_sense_is_refused(name, changes, says):
    config = config_of(name, changes)
    with pytest.raises(UserError, match=says):
        config = config_lib.resolve(config)
        optimizer = build_optimizer(config, schedule)
        optimizer_lib.check_optimizer(
            config.optimizer, optimizer, jax.tree.map(jnp.float32, PARAMS)
        )


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'freeze': 'conv9'}, "freeze: 'conv9' matches no parameter"),
        ({'freeze': '.'}, 'no parameter to train'),
        ({'lr_factors': (('layer9', 0.1),)}, "lr_factors: 'layer9' matches no parameter"),
    ],
)
def test_a_pattern_that_names_nothing_is_a_mistake(changes, says):
    with pytest.raises(UserError, match=says):
        RateFactors(**changes).check(PARAMS)
    with pytest.raises(UserError, match="weight_decay_pattern: 'kernal\\$' matches no"):
        check_pattern('weight_decay_pattern', 'kernal$', PARAMS)


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'optimizer.clip_norm': 0.0}, 'optimizer.clip_norm=0.0 must be a number above 0'),
        ({'optimizer.clip_value': -1.0}, 'optimizer.clip_value=-1.0 must be'),
        ({'optimizer.lr_for_batch': 0}, 'optimizer.lr_for_batch=0 must be'),
        ({'optimizer.lr': float('inf')}, 'config.optimizer.lr is inf'),
        ({'weight_decay': -1e-4}, 'weight_decay=-0.0001 must be'),
        ({'training.ema_decay': 1.0}, r'ema_decay=1.0 must be a number in \[0, 1\)'),
        ({'training.accumulate': 0}, 'training.accumulate=0'),
        ({'training.shard': 'fspd'}, "Did you mean 'fsdp'"),
        ({'training.polyak_from': '-1 epochs'}, 'negative'),
        ({'training.polyak_from': '1 epochs', 'training.ema_decay': 0.9}, 'only one'),
        ({'seed': -1}, 'seed=-1'),
        ({'seed': 2**32}, 'seed=4294967296'),
        ({'loss.aux_weight': -0.3}, 'loss.aux_weight'),
    ],
)
def test_numbers_that_make_no_sense_are_refused_before_any_data_is_read(changes, says):
    config = default_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=says):
        config_lib.check(config)

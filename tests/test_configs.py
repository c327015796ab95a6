"""Every config builds, is complete, and trains one step on synthetic images of its shape."""

import importlib
import inspect
import re

import jax
import numpy as np
import pytest

from tests.conftest import REPO
from tests.tiers import split
from vision.core import config as config_lib

NAMES = sorted(p.stem for p in (REPO / 'configs').glob('*.py') if p.stem != '__init__')


@pytest.mark.parametrize('name', NAMES)
def test_a_config_is_complete_and_cites_its_paper(name):
    module = importlib.import_module(f'configs.{name}')
    config = module.get_config()
    config_lib.check(config)
    assert config.is_locked or config.to_dict()
    assert f'--config=configs/{name}.py' in module.__doc__
    assert inspect.getdoc(module.get_config)
    resolved = config_lib.resolve(config)
    assert config_lib.from_json(config_lib.to_json(resolved)).to_dict() == resolved.to_dict()


def imports(name):
    """The configs that a config imports."""
    source = (REPO / 'configs' / f'{name}.py').read_text()
    return set(re.findall(r'^(?:from|import) configs[. ](?:import )?(\w+)', source, re.MULTILINE))


@pytest.mark.parametrize('name', NAMES)
def test_a_config_shows_its_whole_run_on_a_page(name):
    """At most one import, of a family's data; results, cost and deviations are stated."""
    module = importlib.import_module(f'configs.{name}')
    others = imports(name)
    assert len(others) <= 1 and not any(map(imports, others))
    for other in others:  # the helper sets the data and nothing else
        config, bare = module.default_config(), module.default_config()
        importlib.import_module(f'configs.{other}').set_data(config)
        assert {k for k in config if config[k] != bare[k]} == {'data'}
    for part in ('Paper', 'Result', 'Cost', 'Deviations'):
        assert f'\n{part}' in module.__doc__
    assert len(inspect.getsource(module).splitlines()) <= 100


@pytest.mark.parametrize(
    'name', split([n for n in NAMES if n.endswith('lenet5')], ['mnist_lenet5'])
)
def test_a_config_takes_a_step(name):
    from vision.core.mesh import make_mesh
    from vision.data import arrays
    from vision.evaluation.answers import Member, answer, make_step
    from vision.preprocess import inputs
    from vision.training.setup import create_model, loading_of, make_recipe
    from vision.training.step import init_state, make_train_step

    config = importlib.import_module(f'configs.{name}').get_config()
    size = 8 if name.startswith('digits') else 28
    source = arrays.synthetic('train', 64, 10, size, 1)
    config.training.batch_size, mesh = 16, make_mesh()
    shape = inputs.input_shape(source, config.preprocess.eval)
    model = create_model(**config.model.to_dict() | {'num_classes': 10})
    recipe = make_recipe(config, model, source.class_names, 100, lambda text, key: 2)
    state, step = init_state(recipe, shape, mesh), make_train_step(recipe, mesh)
    before = jax.device_get(state.params)
    batches = inputs.TrainBatches(source, loading_of(config), mesh, 0)
    for _ in range(2):  # a warm-up starts with learning rate 0
        state, metrics = step(state, next(batches))
    assert bool(metrics['finite'])
    changed = jax.tree.map(
        lambda a, b: not np.array_equal(a, b), before, jax.device_get(state.params)
    )
    assert all(jax.tree.leaves(changed))
    eval_batches = inputs.EvalBatches(source, config.preprocess.eval, 50, mesh)
    member = Member(make_step(recipe.task, model, mesh), state.variables, eval_batches)
    assert len(answer(recipe.task, [member], 64)['id']) == 64

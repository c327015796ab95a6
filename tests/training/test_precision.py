"""bfloat16 computation with float32 parameters, optimizer state, statistics and loss."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.training.tiny import NET
from vision.core.config import default_config
from vision.core.mesh import make_mesh
from vision.data import arrays
from vision.models import create_model
from vision.preprocess import inputs
from vision.training.setup import loading_of, make_recipe
from vision.training.step import init_state, make_train_step


def test_a_model_trains_in_bfloat16():
    source, mesh, config = arrays.synthetic('train', 256, 4, 32, 1), make_mesh(), default_config()
    config.model.update({'name': NET, 'dtype': 'bfloat16'})
    config.preprocess.std = (0.3,)
    config.training.update({'batch_size': 32, 'ema_decay': 0.9})
    model = create_model(**config.model.to_dict(), num_classes=4)
    config.schedule, config.optimizer.lr = {'name': 'constant', 'warmup': '0 steps'}, 0.01
    recipe = make_recipe(config, model, source.class_names, 10)
    state, step = init_state(recipe, (32, 32, 1), mesh), make_train_step(recipe, mesh)
    batches = inputs.TrainBatches(source, loading_of(config), mesh, 0)
    program = str(jax.make_jaxpr(step)(state, next(batches)))
    assert any('conv_general_dilated' in line and 'bf16' in line for line in program.splitlines())
    losses = []
    for _ in range(60):
        state, metrics = step(state, next(batches))
        losses.append(float(metrics['loss']) / 32)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert metrics['loss'].dtype == jnp.float32
    kinds = {x.dtype for x in jax.tree.leaves((state.variables, state.opt_state, state.ema_params))}
    assert kinds <= {jnp.dtype('float32'), jnp.dtype('int32')}

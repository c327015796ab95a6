"""Runs the same steps with 'data', 'fsdp' and one device on 8 simulated devices; prints JSON."""

import dataclasses
import json
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from tests.models.common import NARROW
from tests.task.judged import RANK
from tests.tiers import quick
from vision.core import mesh as mesh_lib
from vision.core.checkpoints import Checkpoints
from vision.core.config import default_config
from vision.evaluation.answers import Member, answer, make_step
from vision.evaluation.run import Run
from vision.models import create_model
from vision.task.metrics import figures as figures_of
from vision.training.distillation import Distillation
from vision.training.setup import make_recipe
from vision.training.step import init_state, make_train_step

STEPS = 12
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 32, 8, 8, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 8, (2, 32)).astype(np.int32)
COMPILED = {'times': 0}
FAMILY_RUNS = {'one': ('data', 1), 'fsdp': ('fsdp', 8)}


def count_compilations(event, duration, **_):
    COMPILED['times'] += event.endswith('backend_compile_duration')


class Net(nn.Module):
    """Convolutions with BatchNorm; 8 does not divide the longest axis of one kernel."""

    num_classes: int = 8

    @nn.compact
    def __call__(self, images, train):
        x = images
        for features in (52, 64):
            x = nn.Conv(features, (3, 3), (2, 2), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = x.mean((1, 2))
        return nn.Dense(self.num_classes)(nn.Dropout(0.1, deterministic=not train)(x)), {}


def config_of(shard, update='gradient', **training):
    config = default_config()
    config['update'].name = update
    config.optimizer.update({'name': 'adamw', 'lr': 3e-3, 'clip_norm': 1.0})
    config.weight_decay = 0.05
    config.schedule = {'name': 'constant', 'warmup': '0 steps'}
    config.training.update({'shard': shard, 'batch_size': 32, 'ema_decay': 0.9, **training})
    return config


def recipe_of(config, model):
    return make_recipe(config, model, [str(i) for i in range(model.num_classes)], 10)


def build(config, mesh, model=None, size=8):
    recipe = recipe_of(config, model or Net())
    return init_state(recipe, (size, size, 3), mesh), make_train_step(recipe, mesh)


def batch(i, mesh):
    rows = {
        'image': IMAGES[i % 2], 'label': LABELS[i % 2],
        'id': np.arange(32, dtype=np.int32), 'mask': np.ones(32, np.float32),
    }  # fmt: skip
    return mesh_lib.put_batch(rows, mesh)


def mesh_of(devices):
    axis = (AxisType.Auto,)
    return jax.make_mesh((devices,), ('data',), axis_types=axis, devices=jax.devices()[:devices])


def taught(config, mesh):
    """Returns the state and the step of a distillation whose teacher has other initial values."""
    recipe = recipe_of(config, Net())
    source = recipe_of(config, Net())
    teacher = init_state(dataclasses.replace(source, seed=1), (8, 8, 3), mesh).variables
    task = Distillation(source.task.settings, teacher='none', kind='soft', weight=0.5)
    shapes = mesh_lib.abstract(teacher)
    vars(task)['_run'] = Run(Path(), None, task.settings.class_names, None, (8, 8, 3), 0, Net(),
                             source.task, shapes, mesh)  # fmt: skip
    recipe = dataclasses.replace(recipe, task=task)
    state = dataclasses.replace(init_state(recipe, (8, 8, 3), mesh), extra=teacher)
    return state, make_train_step(recipe, mesh)


def run(shard, devices, teacher=False, **training):
    """Trains; returns the last state and the metrics of each step."""
    mesh, config = mesh_of(devices), config_of(shard, **training)
    state, step = (taught if teacher else build)(config, mesh)
    figures, compiled = [], 0
    for i in range(STEPS):
        compiled = COMPILED['times'] if i == 1 else compiled
        layout = jax.tree.map(lambda x: x.sharding, state)
        state, metrics = step(state, batch(i, mesh))
        assert jax.tree.map(lambda x: x.sharding, state) == layout
        figures.append({k: float(metrics[k]) for k in ('loss', 'grad_norm', 'param_norm')})
    assert COMPILED['times'] == compiled > 0  # one compilation serves all steps
    return state, figures


def family(name, shard, devices):
    """Trains a narrow network for two steps; returns their metrics and a device's largest share."""
    mesh, config = mesh_of(devices), config_of(shard)
    config.optimizer.update({'name': 'sgd', 'lr': 0.05})
    model = create_model(name, num_classes=8, **NARROW[name])
    state, step = build(config, mesh, model, 32)
    metrics = []
    for i in range(2):
        images = batch(i, mesh)
        large = jnp.repeat(jnp.repeat(images['image'], 4, axis=1), 4, axis=2)
        state, found = step(state, images | {'image': large})
        metrics.append(found)
    return {
        'share': max(shares(state.params)),
        **{key: [float(m[key]) for m in metrics] for key in ('loss', 'grad_norm')},
    }


def scores_of(state, shard, devices):
    mesh, task = mesh_of(devices), recipe_of(config_of(shard), Net()).task
    member = Member(make_step(task, Net(), mesh), state.eval_variables, [batch(0, mesh)])
    return figures_of(task, answer(task, [member], 32))


def shares(tree):
    """Returns the bytes on each device divided by those of the whole tree."""
    leaves = [x for x in jax.tree.leaves(tree) if x.dtype == jnp.float32]
    total = sum(x.nbytes for x in leaves)
    on = dict.fromkeys(jax.devices(), 0)
    for leaf in leaves:
        for shard in leaf.addressable_shards:
            on[shard.device] += shard.data.nbytes
    return [count / total for count in on.values()]


def aliased(shard):
    """Returns the bytes of the donated state that a step overwrites, and its total, per device."""
    mesh = mesh_lib.make_mesh()
    state, step = build(config_of(shard), mesh)
    memory = step.lower(state, batch(0, mesh)).compile().memory_analysis()
    floats = [x for x in jax.tree.leaves(state) if x.dtype == jnp.float32]
    return memory.alias_size_in_bytes, sum(x.addressable_shards[0].data.nbytes for x in floats)


def main():
    """Prints the results as JSON; leaves a checkpoint of the 'fsdp' run in the given folder."""
    jax.monitoring.register_event_duration_secs_listener(count_compilations)
    figures, states = {}, {}
    for name, shard, devices, training in (
        ('one', 'data', 1, {}),
        ('data', 'data', 8, {}),
        ('fsdp', 'fsdp', 8, {}),
        ('one, in parts', 'data', 1, {'accumulate': 4}),
        ('fsdp, in parts', 'fsdp', 8, {'accumulate': 4}),
        ('one, sam', 'data', 1, {'update': 'sam', 'accumulate': 2}),
        ('fsdp, sam', 'fsdp', 8, {'update': 'sam', 'accumulate': 2}),
        ('one, taught', 'data', 1, {'teacher': True, 'accumulate': 2}),
        ('fsdp, taught', 'fsdp', 8, {'teacher': True, 'accumulate': 2}),
    ):
        if ',' in name and quick():
            continue
        states[name], figures[name] = run(shard, devices, **training)
    scores = {
        'one': scores_of(states['one'], 'data', 1),
        'fsdp': scores_of(states['fsdp'], 'fsdp', 8),
    }
    folder = Path(sys.argv[1])
    with Checkpoints(folder, RANK) as checkpoints:
        checkpoints.save(states['fsdp'], {})
        checkpoints.wait()
        restored = {k: checkpoints.restore(STEPS, states[k])[0] for k in ('one', 'data', 'fsdp')}
    same = {
        name: all(
            np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(jax.device_get((state.variables, state.opt_state))),
                jax.tree.leaves(
                    jax.device_get((states['fsdp'].variables, states['fsdp'].opt_state))
                ),
                strict=True,
            )
        )
        and jax.tree.map(lambda x: x.sharding, state)
        == jax.tree.map(lambda x: x.sharding, states[name])
        for name, state in restored.items()
    }
    config = config_of('fsdp')
    large, _ = build(
        config,
        mesh_lib.make_mesh(),
        create_model('resnet18', num_classes=1024, stage_sizes=(1,), widths=(512,)),
        32,
    )
    families = {
        name: {kind: family(name, *way) for kind, way in FAMILY_RUNS.items()}
        for name in (() if quick() else NARROW)
    }
    trees = {'params': large.params, 'opt_state': large.opt_state, 'ema': large.ema_params}
    print(
        json.dumps(
            {
                'figures': figures,
                'families': families,
                'scores': scores,
                'restored': same,
                'shares': {k: shares(v) for k, v in trees.items()},
                'aliased': {k: aliased(k) for k in ('data', 'fsdp')},
            }
        )
    )


if __name__ == '__main__':
    main()

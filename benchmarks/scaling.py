"""Throughput by batch size, memory by depth, and the cost of a ResNet-50 step as XLA counts it."""

import os
import sys
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import throughput
from benchmarks.loop import plain_recipe, synthetic_config
from vision.core import mesh as mesh_lib
from vision.core.state import TrainState
from vision.models.base import abstract_variables
from vision.models.registry import create_model
from vision.models.summary import count
from vision.training.step import make_train_step

BATCHES = (16, 32, 64, 128, 256)
DEPTHS = (20, 56, 110)

_OF_XLA = """
import json
from vision.models import forms
from benchmarks import scaling
with forms.xla_only():
    print(json.dumps({'depths': scaling.by_depth(), 'cost': [scaling.step_cost()]}))
"""


def scaling() -> dict[str, Any]:
    """Measures `batches`, each in a process of its own, and asks XLA for `depths` and `cost` in another.

    XLA is asked about its own forms, without the fast ones and without oneDNN, whose calls hold and
    count nothing that it knows of.
    """
    flags = os.environ.get('XLA_FLAGS', '').replace(
        'onednn_custom_call=true', 'onednn_custom_call=false'
    )
    told = throughput.run_process(
        [sys.executable, '-c', _OF_XLA], os.environ | {'XLA_FLAGS': flags}
    )
    return {'batches': by_batch(), **told}


def by_batch(batches: tuple[int, ...] = BATCHES) -> list[dict[str, Any]]:
    """Measures training steps of ResNet-20 on 32 pixels, images per second for each batch size."""
    rows = []
    for batch in batches:
        reading = throughput.measure_apart('train', 'resnet20', 'float32', 32, 3, batch)
        rows.append({'model': 'resnet20', 'batch': batch, 'rate': reading['rate']})
    return rows


def by_depth(depths: tuple[int, ...] = DEPTHS, batch: int = 128) -> list[dict[str, Any]]:
    """Reads from compiled training steps of CIFAR's ResNets what they hold besides their arguments.

    Nothing runs: `temp_mib` is XLA's own figure for this machine's backend, exact, and has all that
    lives between the forward and the backward pass.

    Args:
      depths: n of `resnet<n>`.
      batch: images of 32×32×3, float32.
    """
    rows = []
    for depth in depths:
        sizes = [
            compile_step(f'resnet{depth}', 32, batch, remat=remat).memory_analysis()
            for remat in (False, True)
        ]
        without, remat = (size.temp_size_in_bytes / 2**20 for size in sizes)
        rows.append(
            {
                'model': f'resnet{depth}',
                'batch': batch,
                'temp_mib': without,
                'temp_mib_remat': remat,
                'ratio': remat / without,
            }
        )
    return rows


def step_cost(model: str = 'resnet50', size: int = 224, batch: int = 8) -> dict[str, Any]:
    """XLA's count of a training step, each image's share; float32, compiled for this machine.

    Returns:
      `gflop` and `gflop_by_hand` (two for each multiplication of the forward pass, three times),
      and `mb_accessed`, what its fused operations read and write, in 1e6 bytes.
    """
    cost = compile_step(model, size, batch).cost_analysis()
    network = create_model(model, num_classes=throughput.classes(size))
    return {
        'model': model,
        'batch': batch,
        'gflop': cost['flops'] / batch / 1e9,
        'gflop_by_hand': 6 * count(model, network, (size, size, 3)).macs / 1e9,
        'mb_accessed': cost['bytes accessed'] / batch / 1e6,
    }


def compile_step(model: str, size: int, batch: int, **arguments: Any) -> Any:
    """Compiles a training step, SGD with momentum, for images [batch, size, size, 3]; computes nothing.

    Args:
      model: in the registry.
      size: pixels.
      batch: of the global batch.
      **arguments: the model's.
    """
    network = create_model(model, num_classes=throughput.classes(size), **arguments)
    mesh = mesh_lib.make_mesh()
    recipe = plain_recipe(synthetic_config(model, size, batch), network)
    variables = abstract_variables(network, (size, size, 3))
    state = TrainState(
        step=jax.eval_shape(lambda: jnp.zeros((), jnp.int32)),
        params=variables['params'],
        batch_stats=variables.get('batch_stats', {}),
        opt_state=jax.eval_shape(recipe.optimizer.init, variables['params']),
        ema_params=None,
        ema_batch_stats=None,
        rng=jax.eval_shape(jax.random.key, 0),
    )
    examples = {
        'image': jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
        'label': jax.ShapeDtypeStruct((batch,), jnp.int32),
        'id': jax.ShapeDtypeStruct((batch,), jnp.int32),
        'mask': jax.ShapeDtypeStruct((batch,), jnp.float32),
    }
    step = make_train_step(recipe, mesh)
    return jax.jit(step, donate_argnums=0).lower(state, examples).compile()

"""Throughput by batch size, memory by depth, and the cost of a ResNet-50 step counted by XLA."""

import os
import sys
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import throughput
from benchmarks.loop import plain_recipe, synthetic_config
from vision.core import mesh as mesh_lib
from vision.core.state import TrainState
from vision.models import create_model
from vision.models.base import abstract_variables
from vision.models.summary import count
from vision.training.step import make_train_step

BATCHES = (16, 32, 64, 128, 256)
DEPTHS = (20, 56, 110)

_ANALYSIS = """
import json
from vision.models.layers import xla_only
from benchmarks import scaling
with xla_only():
    print(json.dumps({'depths': scaling.by_depth(), 'cost': [scaling.step_cost()]}))
"""


def scaling() -> dict[str, Any]:
    """Returns `batches` (`by_batch`), `depths` (`by_depth`) and `cost` (`step_cost`).

    Every measurement runs in its own process. XLA cannot see the memory and operations of oneDNN
    calls, so `depths` and `cost` are without oneDNN and without the kernels of `vision.models.cpu`.
    """
    # `vision.models.cpu.startup` enables oneDNN by default: disable it for the analysis.
    flags = os.environ.get('XLA_FLAGS', '').replace(
        'onednn_custom_call=true', 'onednn_custom_call=false'
    )
    analysis = throughput.run_process(
        [sys.executable, '-c', _ANALYSIS], os.environ | {'XLA_FLAGS': flags}
    )
    return {'batches': by_batch(), **analysis}


def by_batch(batches: tuple[int, ...] = BATCHES) -> list[dict[str, Any]]:
    """Measures the images/s of training steps of ResNet-20 on 32 pixels for each batch size."""
    rows = []
    for batch in batches:
        # A new process for each batch size, so that no memory is left from the previous one.
        reading = throughput.measure_apart('train', 'resnet20', 'float32', 32, 3, batch)
        rows.append({'model': 'resnet20', 'batch': batch, 'rate': reading['rate']})
    return rows


def by_depth(depths: tuple[int, ...] = DEPTHS, batch: int = 128) -> list[dict[str, Any]]:
    """Reads the temporary memory of compiled training steps of the CIFAR ResNets.

    Nothing is computed. `temp_mib` is XLA's exact figure for this machine's backend. It includes
    all activations that are kept between the forward and the backward pass.

    Args:
      depths: the depths n of the models `resnet<n>`.
      batch: the batch size; images are float32 32×32×3.
    """
    rows = []
    for depth in depths:
        # Compile each model twice, without and with rematerialisation.
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
    """Returns XLA's cost per image of a float32 training step, compiled for this machine.

    Returns:
      `gflop`: XLA's count, in 1e9. `gflop_by_hand`: three forward passes with two FLOPs for each
      multiply-add. `mb_accessed`: 1e6 bytes that the fused operations read and write.
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


def compile_step(model: str, size: int, batch: int, channels: int = 3, **arguments: Any) -> Any:
    """Compiles a training step of SGD with momentum, for images [batch, size, size, channels].

    Nothing is computed.

    Args:
      model: the model's name in the registry.
      size: pixels.
      batch: the global batch size.
      channels: the number of channels.
      **arguments: arguments of the model.
    """
    # Shapes stand for the state and the batch, so that no memory is needed.
    network = create_model(model, num_classes=throughput.classes(size), **arguments)
    mesh = mesh_lib.make_mesh()
    recipe = plain_recipe(synthetic_config(model, size, batch), network)
    variables = abstract_variables(network, (size, size, channels))
    state = TrainState(
        step=jax.eval_shape(lambda: jnp.zeros((), jnp.int32)),
        params=variables['params'],
        batch_stats=variables.get('batch_stats', {}),
        opt_state=jax.eval_shape(recipe.optimizer.init, variables['params']),
        ema_params=None,
        ema_batch_stats=None,
        rng=jax.eval_shape(jax.random.key, 0),
    )
    # The batch as the loader would make it.
    examples = {
        'image': jax.ShapeDtypeStruct((batch, size, size, channels), jnp.uint8),
        'label': jax.ShapeDtypeStruct((batch,), jnp.int32),
        'id': jax.ShapeDtypeStruct((batch,), jnp.int32),
        'mask': jax.ShapeDtypeStruct((batch,), jnp.float32),
    }
    step = make_train_step(recipe, mesh)
    return jax.jit(step, donate_argnums=0).lower(state, examples).compile()

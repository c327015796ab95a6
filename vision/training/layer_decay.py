"""Layer-wise learning rate decay: the layers of a model, and the learning rate factor of each."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from vision.core.errors import UserError
from vision.models.base import init_variables, is_auxiliary, is_head


def layer_factors(
    model: nn.Module, input_shape: Sequence[int], decay: float
) -> tuple[tuple[str, float], ...]:
    """Returns pairs of a top-level module and its factor on the learning rate.

    The factor is decay^n for a layer with n layers above it, so that the classifier has the factor
    1 (Clark et al. 2020, ELECTRA; Bao et al. 2021, BEiT).

    Args:
      model: the unbound module.
      input_shape: (H, W, C) of the model's input.
      decay: ratio of the learning rates of a layer and the layer above it.

    Raises:
      UserError: the model has fewer than three layers at its top level, or is an NNX module.
    """
    if hasattr(model, 'nnx_class'):  # Flax's bridge sorts the layers by name
        raise UserError(
            f'layer_decay={decay}: the order of the layers of an NNX module is unknown; set '
            'lr_factors instead'
        )
    layers = model_layers(model, input_shape)
    if len(layers) < 3:
        names = ', '.join(name for layer in layers for name in layer)
        raise UserError(
            f'layer_decay={decay}: {type(model).__name__} has only {len(layers)} layers at its top '
            f'level ({names}); set lr_factors instead'
        )
    above = range(len(layers) - 1, -1, -1)
    return tuple((name, decay**n) for n, layer in zip(above, layers, strict=True) for name in layer)


def model_layers(model: nn.Module, input_shape: Sequence[int]) -> list[list[str]]:
    """Groups a model's top-level modules and parameters into layers, from the input to the output.

    They are in the order of their first use by the model. A block is a module that contains
    modules, except a classifier and attention pooling. In a model with blocks, the layers are

    1. the stem: everything before the first block, including tokens and position embeddings;
    2. each block, with the modules between it and the preceding block, such as ConvNeXt's
       downsampling;
    3. everything after the last block: the last norm, the classifier, and auxiliary heads.

    A ViT therefore has depth + 2 layers, as in BEiT and MAE. For ResNet and ConvNeXt the layers are
    the same as in timm; ConvNeXt's authors put three successive blocks into one layer. In a model
    without blocks (LeNet, AlexNet, VGG), a layer is a module with a kernel and the norms after it.

    Args:
      model: the unbound module.
      input_shape: (H, W, C) of the model's input.
    """
    params = _in_order_of_use(model, input_shape)
    body = {name: tree for name, tree in params.items() if not is_auxiliary((name,))}
    no_blocks = [name for name in body if is_head((name,)) or name == 'attn_pool']
    blocks = [name for name, tree in body.items() if _holds_modules(tree) and name not in no_blocks]
    layers: list[list[str]] = []
    if blocks:
        # Collect the modules before each block; those before the first block are the stem.
        waiting: list[str] = []  # modules since the last block
        for name in body:
            if name in blocks:
                if waiting and not layers:  # the stem
                    layers, waiting = [waiting], []
                layers.append([*waiting, name])
                waiting = []
            else:
                waiting.append(name)
        if waiting:
            layers.append(waiting)
    else:
        # Each module with a kernel starts a layer.
        for name, tree in body.items():
            if not layers or (isinstance(tree, Mapping) and 'kernel' in tree):
                layers.append([])
            layers[-1].append(name)
    # Auxiliary heads belong to the last layer.
    layers[-1] += [name for name in params if is_auxiliary((name,))]
    return layers


def _holds_modules(tree: Any) -> bool:
    """Returns True for the parameters of a module with modules inside."""
    return isinstance(tree, Mapping) and any(isinstance(v, Mapping) for v in tree.values())


def _in_order_of_use(model: nn.Module, input_shape: Sequence[int]) -> dict[str, Any]:
    """Returns the shapes of a model's parameters, with the top level in the order of first use."""
    order: list[str] = []

    def init() -> Any:
        params = init_variables(model, input_shape, jax.random.key(0))['params']
        order.extend(params)  # PyTrees that leave a traced function are sorted by name
        return params

    shapes = jax.eval_shape(init)
    return {name: shapes[name] for name in order}

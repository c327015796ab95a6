"""The costs of a model: parameters, multiply-adds, activations and the shape of each stage.

Nothing is compiled or computed: shapes are traced, and the traced program is counted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision.models import MODELS, create_model
from vision.models.base import ImageModel, abstract_variables, check_contract
from vision.models.layers import xla_only


@dataclass(frozen=True)
class Summary:
    """The figures of one model for one image.

    Attributes:
      name: the model's.
      input_shape: (height, width, channels).
      parameters: in the form that predicts, so without auxiliary heads.
      parameters_with_aux: in training.
      macs: fused multiply-adds of convolutions and matrix products, in the form that predicts.
      activations: values that come out of those convolutions and matrix products.
      stages: each endpoint's shape, without the batch.
    """

    name: str
    input_shape: tuple[int, int, int]
    parameters: int
    parameters_with_aux: int
    macs: int
    activations: int
    stages: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            'model': self.name,
            'input': list(self.input_shape),
            'parameters': self.parameters,
            'parameters_with_aux': self.parameters_with_aux,
            'gmacs': self.macs / 1e9,
            'activations': self.activations,
            'stages': {name: list(shape) for name, shape in self.stages.items()},
        }


def summarise(
    name: str,
    input_size: int | None = None,
    channels: int | None = None,
    num_classes: int | None = None,
    **kwargs: Any,
) -> Summary:
    """Returns the figures of the model called `name`.

    Args:
      name: as for `create_model`.
      input_size: side of the image in pixels; the paper's by default.
      channels: of the image; the paper's by default.
      num_classes: of the classifier; the paper's by default.
      **kwargs: the model's own arguments.

    Raises:
      UserError: what `create_model` raises, a size that the model cannot take, and a model of one's
        own that is none (see `check_contract`).
    """
    model, shape = default_model(name, num_classes, **kwargs)
    size = input_size or shape[0]
    input_shape = (size, size, channels or shape[2])
    if name not in MODELS:
        check_contract(model, input_shape)
    return count(name, model, input_shape)


def default_model(
    name: str, num_classes: int | None = None, **kwargs: Any
) -> tuple[nn.Module, tuple[int, int, int]]:
    """Returns the model with the paper's number of classes, and the paper's (H, W, C)."""
    # Which class a name stands for, a function of one's own need not say: it is made to be asked.
    probe = create_model(name, num_classes=num_classes or 10, **kwargs)
    classes = num_classes or int(getattr(probe, 'default_classes', ImageModel.default_classes))
    shape = getattr(probe, 'input_shape', ImageModel.input_shape)
    return create_model(name, num_classes=classes, **kwargs), shape


def count(name: str, model: nn.Module, input_shape: tuple[int, int, int]) -> Summary:
    """Returns the figures of `model` for an image of `input_shape`."""
    image = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    variables = abstract_variables(model, input_shape)
    order: list[str] = []

    def run(variables: Any, image: jax.Array) -> Any:
        logits, endpoints = model.apply(variables, image, train=False)
        order.extend(endpoints)  # what JAX returns is sorted by name
        return logits, endpoints

    with xla_only():  # so that a convolution is one
        jaxpr, shapes = jax.make_jaxpr(run, return_shape=True)(variables, image)
    products = [_product(eqn) for eqn in _equations(jaxpr.jaxpr)]
    predicting = _without_aux(variables['params'])
    stages = {stage: shapes[1][stage].shape[1:] for stage in order}
    return Summary(
        name=name,
        input_shape=input_shape,
        parameters=_size(predicting),
        parameters_with_aux=_size(variables['params']),
        macs=sum(macs for macs, _ in products),
        activations=sum(values for _, values in products),
        stages={**stages, 'logits': shapes[0].shape[1:]},
    )


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a program and of the programs inside it (jit, remat, custom gradients)."""
    for eqn in jaxpr.eqns:
        inner = [p for v in eqn.params.values() for p in jax.tree.leaves(v, is_leaf=_is_jaxpr)]
        inner = [getattr(p, 'jaxpr', p) for p in inner if _is_jaxpr(p)]
        yield eqn
        for program in inner:
            yield from _equations(program)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, 'eqns') or hasattr(getattr(value, 'jaxpr', None), 'eqns')


def _product(eqn: Any) -> tuple[int, int]:
    """(multiply-adds, values that come out) of an equation; (0, 0) unless it is a product."""
    name = eqn.primitive.name
    if name not in ('conv_general_dilated', 'dot_general'):
        return 0, 0
    out = eqn.outvars[0].aval.size
    if name == 'conv_general_dilated':
        kernel = eqn.invars[1].aval
        out_features = kernel.shape[eqn.params['dimension_numbers'].rhs_spec[0]]
        return out * kernel.size // out_features, out
    (contracted, _), _ = eqn.params['dimension_numbers']
    return out * math.prod(eqn.invars[0].aval.shape[i] for i in contracted), out


def _without_aux(params: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in params.items() if not k.lower().startswith('aux')}


def _size(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))

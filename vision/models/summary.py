"""Cost of a model: parameters, multiply-adds, activations and stage shapes.

Nothing is compiled or computed: the model is traced, and the operations of the trace are counted.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision.core.errors import UserError
from vision.models.base import ImageModel, check_contract
from vision.models.layer_costs import Cost, layer_cost
from vision.models.layers import xla_only
from vision.models.registry import MODELS, create_model


@dataclass(frozen=True)
class Summary:
    """Cost of a model for one image.

    Attributes:
      name: name of the model.
      input_shape: (height, width, channels).
      parameters: number of parameters in evaluation, without auxiliary heads.
      parameters_with_aux: number of parameters in training.
      macs: fused multiply-adds of convolutions and matrix products, in evaluation.
      activations: number of output values of those convolutions and matrix products.
      stages: shape of each endpoint, without the batch axis.
    """

    name: str
    input_shape: tuple[int, int, int]
    parameters: int
    parameters_with_aux: int
    macs: int
    activations: int
    stages: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Returns the summary for JSON."""
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
    """Returns the cost of a model.

    Args:
      name: name of the model, as for `create_model`.
      input_size: side of the image in pixels; the paper's by default.
      channels: number of image channels; the paper's by default.
      num_classes: the paper's by default.
      **kwargs: arguments of the model.

    Raises:
      UserError: as in `create_model`; or the model does not support the size; or a user-defined
        model does not follow the contract (see `check_contract`).
    """
    model, shape = default_model(name, num_classes, **kwargs)
    # The paper's image size and channels by default.
    size = input_size or shape[0]
    input_shape = (size, size, channels or shape[2])
    if name not in MODELS:
        check_contract(model, input_shape)
    return count(name, model, input_shape)


def default_model(
    name: str, num_classes: int | None = None, **kwargs: Any
) -> tuple[nn.Module, tuple[int, int, int]]:
    """Returns the model with the paper's number of classes, and the paper's (H, W, C)."""
    # A user-defined name may be a function, so the model is built to read its class attributes.
    probe = create_model(name, num_classes=num_classes or 10, **kwargs)
    classes = num_classes or int(getattr(probe, 'default_classes', ImageModel.default_classes))
    shape = getattr(probe, 'input_shape', ImageModel.input_shape)
    return create_model(name, num_classes=classes, **kwargs), shape


def count(name: str, model: nn.Module, input_shape: tuple[int, int, int]) -> Summary:
    """Returns the cost of `model` for an image of `input_shape`.

    Equal parts of the registry's models (same class, fields and input shapes) are traced once.

    Raises:
      UserError: the images are too small for the model.
    """
    tracer = _of_registry if name in MODELS else _Tracer(by_parts=False)
    image = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    order: list[str] = []
    with xla_only():  # fast forms would hide convolutions
        # Trace the training form. If the images are too small for auxiliary heads, leave them out.
        try:
            trained = tracer.trace(model, (image,), {'train': True}, None, order)
        except UserError:
            if not getattr(model, 'aux_heads', False):
                raise
            model = model.clone(aux_heads=False)
            trained = tracer.trace(model, (image,), {'train': True}, None, order)
        # Trace the evaluation form if it differs.
        predicting = trained
        differs = any(getattr(model, field, False) for field in ('aux_heads', 'dense_evaluation'))
        if differs or name not in MODELS:
            order.clear()
            predicting = tracer.trace(model, (image,), {'train': False}, trained.variables, order)
    logits, endpoints = predicting.outputs
    stages = {stage: endpoints[stage].shape[1:] for stage in order}
    return Summary(
        name=name,
        input_shape=input_shape,
        parameters=_size(_without_aux(trained.variables['params'])),
        parameters_with_aux=_size(trained.variables['params']),
        macs=predicting.macs,
        activations=predicting.activations,
        stages={**stages, 'logits': logits.shape[1:]},
    )


class _Tracer:
    """Traces modules. With `by_parts`, submodules are traced separately and only once."""

    def __init__(self, by_parts: bool):
        self._by_parts = by_parts
        self._known: dict[Any, Cost] = {}
        self._parts: list[tuple[str, Cost]] = []  # submodules of the module being traced

    def trace(
        self,
        module: nn.Module,
        args: tuple,
        kwargs: dict[str, Any],
        variables: dict[str, Any] | None = None,
        order: list[str] | None = None,
    ) -> Cost:
        """Traces an unbound model.

        Args:
          module: the model.
          args: arguments of its call, with shapes for arrays.
          kwargs: keyword arguments of its call, without arrays.
          variables: shapes; if None, the model is initialised.
          order: receives the names of the endpoints in order.
        """
        if not self._by_parts:
            return self._trace(module, args, kwargs, variables, order)
        # Without jit, JAX's functions are traced as part of the model and not one by one.
        with nn.intercept_methods(self._intercept), jax.disable_jit():
            return self._trace(module, args, kwargs, variables, order)

    def _trace(
        self,
        module: nn.Module,
        args: tuple,
        kwargs: dict[str, Any],
        known: dict[str, Any] | None = None,
        order: list[str] | None = None,
    ) -> Cost:
        """Traces a module and adds the cost of its separately traced submodules."""
        rngs = _keys()

        def run(known: dict[str, Any] | None, arrays: dict[int, jax.Array]) -> Any:
            own = [arrays.get(i, x) for i, x in enumerate(args)]
            if known is None:
                outputs, variables = module.init_with_output(rngs, *own, **kwargs)
            else:
                outputs, variables = module.apply(known, *own, **kwargs), known
            if order is not None:
                order.extend(outputs[1])  # JAX would sort the names
            return outputs, {k: v for k, v in variables.items() if k in ('params', 'batch_stats')}

        # Trace the module. During the trace, `_intercept` collects the submodules.
        before, self._parts = self._parts, []
        try:
            arrays = {i: _shape(x) for i, x in enumerate(args) if _is_array(x)}
            jaxpr, (outputs, variables) = jax.make_jaxpr(run, return_shape=True)(known, arrays)
            parts = self._parts
        finally:
            self._parts = before
        # Merge the submodules' variables and costs.
        variables.setdefault('params', {})
        for name, part in parts:
            for kind, tree in part.variables.items():
                if tree:
                    variables.setdefault(kind, {})[name] = tree
        products = [_product(eqn) for eqn in _equations(jaxpr.jaxpr)]
        products += [(part.macs, part.activations) for _, part in parts]
        return Cost(outputs, variables, sum(m for m, _ in products), sum(a for _, a in products))

    def _intercept(self, call: Any, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
        """Replaces the call of a submodule by zeros of its output shapes, and records its cost."""
        module = context.module
        if context.method_name != '__call__' or len(module.path) != 1:
            return call(*args, **kwargs)
        part = layer_cost(module, args[0]) if args else None
        if part is None:
            key = _key(module, args, kwargs)
            if key is None:
                return call(*args, **kwargs)
            if key not in self._known:
                # Trace the submodule once, without the operations of its initialisers.
                cheap = dict.fromkeys(_initialisers(module), nn.initializers.zeros)
                self._known[key] = self._trace(
                    module.clone(parent=None, name=None, **cheap), args, kwargs
                )
            part = self._known[key]
        self._parts.append((module.path[0], part))
        return jax.tree.map(partial(_stand_in, args[0] if args else None), part.outputs)


_of_registry = _Tracer(by_parts=True)


@cache
def _keys() -> dict[str, jax.Array]:
    return {'params': jax.random.key(0), 'dropout': jax.random.key(1)}


def _key(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Returns a hashable key of everything that determines a call's shapes and cost, or None.

    Rates of dropout are not part of the key, and neither is `train`. In the registry's models it
    may change which submodules a model has, but within a submodule it does not change the
    variables, the outputs or the products.
    """
    left_out = {*_initialisers(module), 'drop_path', 'dropout'}
    kind: Any = type(module)
    names = [name for name in _field_names(kind) if name not in left_out]
    others = [
        value for name, value in sorted(kwargs.items()) if name not in ('train', 'deterministic')
    ]
    given = [
        (x.shape, x.dtype) if _is_array(x) else x
        for x in (*args, *others)
        if not isinstance(x, bool)  # `train` by position
    ]
    key = (kind, *(getattr(module, name) for name in names), *given)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _initialisers(module: nn.Module) -> list[str]:
    """Returns the names of fields that affect values but not shapes."""
    kind: Any = type(module)
    names = [name for name in _field_names(kind) if name.endswith('_init')]
    return [name for name in names if callable(getattr(module, name))]


@cache
def _field_names(kind: type[nn.Module]) -> tuple[str, ...]:
    names = [field.name for field in dataclasses.fields(kind)]
    return tuple(name for name in names if name not in ('parent', 'name'))


def _is_array(value: Any) -> bool:
    return hasattr(value, 'shape') and hasattr(value, 'dtype')


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _stand_in(given: Any, shape: Any) -> Any:
    """Returns a placeholder of the given shape: the input if it has this shape, else zeros."""
    if _is_array(given) and (given.shape, given.dtype) == (shape.shape, shape.dtype):
        return given
    return jnp.zeros(shape.shape, shape.dtype)


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Yields all equations of a program and its inner programs (jit, remat, …)."""
    for eqn in jaxpr.eqns:
        inner = [p for v in eqn.params.values() for p in jax.tree.leaves(v, is_leaf=_is_jaxpr)]
        inner = [getattr(p, 'jaxpr', p) for p in inner if _is_jaxpr(p)]
        yield eqn
        for program in inner:
            yield from _equations(program)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, 'eqns') or hasattr(getattr(value, 'jaxpr', None), 'eqns')


def _product(eqn: Any) -> tuple[int, int]:
    """Returns (multiply-adds, output size) of an equation; (0, 0) unless it is a product."""
    name = eqn.primitive.name
    if name not in ('conv_general_dilated', 'dot_general'):
        return 0, 0
    out = eqn.outvars[0].aval.size
    if name == 'conv_general_dilated':
        # Every output value of a convolution sums over the kernel's inputs.
        kernel = eqn.invars[1].aval
        out_features = kernel.shape[eqn.params['dimension_numbers'].rhs_spec[0]]
        return out * kernel.size // out_features, out
    # Every output value of a matrix product sums over the contracted axes.
    (contracted, _), _ = eqn.params['dimension_numbers']
    return out * math.prod(eqn.invars[0].aval.shape[i] for i in contracted), out


def _without_aux(params: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in params.items() if not k.lower().startswith('aux')}


def _size(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))

"""What a model costs: parameters, multiply-adds, activations and the shape of each stage.

Nothing is compiled or computed: shapes are traced, and the traced program is counted.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision.models import forms
from vision.models.base import ImageModel, abstract_variables, check_contract
from vision.models.registry import MODELS, create_model


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
    """Returns the figures of `model` for an image of `input_shape`.

    Of the registry's models equal parts (of one class, with equal fields, for inputs of one shape) are traced once.
    """
    image = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    order: list[str] = []

    def run(variables: Any, image: jax.Array) -> Any:
        logits, endpoints = model.apply(variables, image, train=False)
        order.extend(endpoints)  # what JAX returns is sorted by name
        return logits, endpoints

    with forms.xla_only():  # so that a convolution is one
        if name in MODELS:
            variables = _known_shapes.variables(model, input_shape)
            macs, activations, shapes = _known_costs.count(run, variables, image)
        else:
            variables = abstract_variables(model, input_shape)
            macs, activations, shapes = _count_products(run, variables, image)
    predicting = _without_aux(variables['params'])
    stages = {stage: shapes[1][stage].shape[1:] for stage in order}
    return Summary(
        name=name,
        input_shape=input_shape,
        parameters=_size(predicting),
        parameters_with_aux=_size(variables['params']),
        macs=macs,
        activations=activations,
        stages={**stages, 'logits': shapes[0].shape[1:]},
    )


class _KnownShapes:
    """Shapes of variables and outputs of modules that have been traced: deep networks repeat their blocks."""

    def __init__(self) -> None:
        self._outputs: dict[Any, Any] = {}
        self._variables: dict[Any, dict[str, Any]] = {}

    def variables(self, model: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, Any]:
        """`abstract_variables`, without tracing what is known."""
        calls: list[tuple[tuple[str, ...], Any]] = []  # in the order of their ends

        def intercept(call: Any, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
            path = context.module.path
            if context.method_name != '__call__':
                return call(*args, **kwargs)
            if not path:  # the model itself begins, perhaps a second time without auxiliary heads
                calls.clear()
                return call(*args, **kwargs)
            key = _key(context.module, args, kwargs)
            if key in self._outputs:
                outputs = _zeros(self._outputs[key])
            else:
                outputs = call(*args, **kwargs)
                if key is not None:
                    self._outputs[key] = jax.eval_shape(lambda: outputs)
            calls.append((path, key))
            return outputs

        with nn.intercept_methods(intercept):
            found = abstract_variables(model, input_shape)
        for path, key in calls:
            if key in self._variables:
                for kind, tree in self._variables[key].items():
                    _put(found.setdefault(kind, {}), path, tree)
            elif key is not None:
                trees = {kind: _get(found[kind], path) for kind in found}
                self._variables[key] = {k: tree for k, tree in trees.items() if tree is not None}
        return found


class _KnownCosts:
    """Products of modules that have been traced, counted part by part."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[int, int, Any]] = {}
        self._parts: list[tuple[int, int]] = []  # of the module that is being counted

    def count(self, run: Any, *arguments: Any) -> tuple[int, int, Any]:
        """Multiply-adds, values that come out of products, and the shapes that `run(*arguments)` returns."""
        with nn.intercept_methods(self._intercept):
            return self._count(run, *arguments)

    def _count(self, run: Any, *arguments: Any) -> tuple[int, int, Any]:
        before, self._parts = self._parts, []
        macs, values, shapes = _count_products(run, *arguments)
        parts, self._parts = [(macs, values), *self._parts], before
        return sum(m for m, _ in parts), sum(v for _, v in parts), shapes

    def _intercept(self, call: Any, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
        """Leaves a part out of the trace, and takes what is known of it instead."""
        module = context.module
        key = None
        if context.method_name == '__call__' and len(module.path) == 1:
            key = _key(module, args, kwargs)
        if key is None:
            return call(*args, **kwargs)
        if key not in self._known:
            alone, shapes = module.clone(parent=None), jax.tree.map(_shape, module.variables)
            arrays = {i: _shape(x) for i, x in enumerate(args) if _is_array(x)}

            def run_alone(variables: Any, arrays: dict[int, jax.Array]) -> Any:
                own = [arrays.get(i, x) for i, x in enumerate(args)]
                return alone.apply(variables, *own, **kwargs)

            self._known[key] = self._count(run_alone, shapes, arrays)
        macs, values, outputs = self._known[key]
        self._parts.append((macs, values))
        return _zeros(outputs)


_known_shapes, _known_costs = _KnownShapes(), _KnownCosts()


def _key(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What decides a call's shapes and cost, hashable; None where that cannot be told."""
    names = [f.name for f in dataclasses.fields(module) if f.name not in ('parent', 'name')]
    given = [
        (x.shape, str(x.dtype)) if _is_array(x) else x for x in (*args, *sorted(kwargs.items()))
    ]
    key = (type(module), *((n, getattr(module, n)) for n in names), *given)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _is_array(value: Any) -> bool:
    return hasattr(value, 'shape') and hasattr(value, 'dtype')


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _get(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _count_products(run: Any, *arguments: Any) -> tuple[int, int, Any]:
    """Multiply-adds, values that come out of products, and the shapes that `run(*arguments)` returns."""
    jaxpr, shapes = jax.make_jaxpr(run, return_shape=True)(*arguments)
    products = [_product(eqn) for eqn in _equations(jaxpr.jaxpr)]
    return sum(macs for macs, _ in products), sum(values for _, values in products), shapes


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

"""Base class of the models, and functions to initialise, trace and check any model."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision.core.errors import UserError
from vision.models.layers import shapes_only, xla_only

Endpoints = dict[str, Any]
Path = tuple[str, ...]

# Names of classifier layers, which do not belong to the backbone.
HEADS = ('fc', 'fc3', 'fc8', 'head', 'classifier')


class ImageModel(nn.Module):
    """Base class of the models: `apply(variables, images, train=...) -> (logits, endpoints)`.

    Images are float32 [B, H, W, C], logits float32 [B, num_classes]. `endpoints` has `features`
    [B, D], the input of the last layer; the activation of each stage by name; and, if the model has
    auxiliary heads and is in training, `aux`, a tuple of their logits. Parameters are float32, and
    `dtype` is the type of the computation.

    A subclass sets `input_shape` and `default_classes` to the values of the paper.
    """

    num_classes: int = 1000
    dtype: Any = jnp.float32

    input_shape: ClassVar[tuple[int, int, int]] = (224, 224, 3)
    default_classes: ClassVar[int] = 1000

    def record(self, endpoints: Endpoints, name: str, x: jax.Array) -> jax.Array:
        """Stores a stage's activation as an endpoint, and makes its gradient accessible."""
        endpoints[name] = self.perturb(name, x)
        return endpoints[name]

    def check_images(
        self,
        images: jax.Array,
        min_size: int = 1,
        exact_size: int | None = None,
        channels: int | None = None,
        hint: str = '',
    ) -> None:
        """Raises UserError unless the images are float [B, H, W, C] of a supported size."""
        # Check the number of axes and the dtype.
        if images.ndim != 4:
            raise UserError(f'{self._title} takes images [B, H, W, C], not shape {images.shape}')
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(f'{self._title} takes normalised float images, not {images.dtype}')
        # Check the size and the number of channels.
        height, width, depth = images.shape[1:]
        hint = f': {hint}' if hint else ''
        if exact_size is not None and (height, width) != (exact_size, exact_size):
            raise UserError(
                f'{self._title} takes images of {exact_size}x{exact_size}, not {height}x{width}{hint}'
            )
        if min(height, width) < min_size:
            raise UserError(
                f'{self._title} takes images of {min_size}x{min_size} and larger, '
                f'not {height}x{width}{hint}'
            )
        if channels is not None and depth != channels:
            raise UserError(f'{self._title} takes images with channels = {channels}, not {depth}')
        if depth == 0:
            raise UserError(f'{self._title} takes images with channels, not shape {images.shape}')

    @property
    def _title(self) -> str:
        return type(self).__name__


def init_variables(model: nn.Module, input_shape: Sequence[int], key: jax.Array) -> dict[str, Any]:
    """Initialises a model.

    Args:
      model: the unbound module.
      input_shape: (H, W, C) of the model's input.
      key: random key for the parameters.

    Returns:
      `params`, and `batch_stats` ({} without BatchNorm).
    """
    # Train mode creates auxiliary heads too. The outputs are not used, so layers need no fast forms,
    # which take long to trace.
    images = jnp.zeros((2, *input_shape), jnp.float32)
    with xla_only():
        variables = model.init({'params': key, 'dropout': key}, images, train=True)
    return {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}


def run_once(function: Callable[[], Any]) -> Any:
    """Compiles and runs a function that a process calls only once, such as initialisation.

    On CPUs it lowers XLA's optimisation level: full optimisation of many random number generators
    takes 2 to 13 times as long to compile (ResNet-50: 9 → 40 s) and saves milliseconds at run time.
    The values are the same to the bit.
    """
    on_cpu = jax.default_backend() == 'cpu'
    options = {'xla_backend_optimization_level': 1} if on_cpu else None
    return jax.jit(function, compiler_options=options)()


def abstract_variables(model: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Returns the shapes of 'params' and 'batch_stats', including auxiliary heads.

    If the images are too small for the auxiliary heads, these are left out.

    Raises:
      UserError: the images are too small for the model, even without auxiliary heads.
    """
    image = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    # Train mode traces auxiliary heads, which may need larger images.
    try:
        with shapes_only():
            shapes = jax.eval_shape(lambda x: model.init(rngs, x, train=True), image)
    except UserError:
        if not getattr(model, 'aux_heads', False):
            raise
        return abstract_variables(model.clone(aux_heads=False), input_shape)
    return {k: v for k, v in shapes.items() if k in ('params', 'batch_stats')}


def check_contract(
    model: nn.Module, input_shape: tuple[int, int, int], modes: Sequence[bool] = (True, False)
) -> dict[str, Any]:
    """Checks that a model follows the contract of `ImageModel`.

    `__call__(images, train)` must return (logits float32 [B, K], endpoints) with `features`
    [B, D].

    Args:
      model: the unbound module.
      input_shape: (H, W, C) of the model's input.
      modes: values of `train` to try; each takes a trace.

    Returns:
      The shapes of `params` and `batch_stats` in the first mode; in training they include those of
      auxiliary heads.

    Raises:
      UserError: the model cannot be called so, or returns something else.
    """
    title = type(model).__name__
    image = jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)
    rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    # Trace with abstract shapes, so that nothing is computed.
    shapes: dict[str, Any] = {}
    for train in modes:
        try:
            with shapes_only():
                out, variables = jax.eval_shape(
                    lambda x, train=train: model.init_with_output(rngs, x, train=train), image
                )
        except TypeError as e:
            raise UserError(
                f'model {title} cannot be called as model(images, train=...): {e}'
            ) from e
        # Check the returned pair, then the logits, then the features.
        if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], dict)):
            raise UserError(f'model {title} must return (logits, endpoints), a pair with a dict')
        logits, features = out[0], out[1].get('features')
        shape, dtype = getattr(logits, 'shape', None), getattr(logits, 'dtype', None)
        classes = getattr(model, 'num_classes', shape[-1] if shape else 1)
        if shape != (2, classes) or dtype != jnp.float32:
            found = type(logits).__name__ if shape is None else f'{dtype} {shape}'
            raise UserError(
                f'model {title} must return float32 logits {(2, classes)} for two images, '
                f'not {found}'
            )
        if getattr(features, 'ndim', None) != 2:
            raise UserError(f"model {title} must return endpoints['features'] of shape [B, D]")
        kept = {k: variables.get(k, {}) for k in ('params', 'batch_stats')}
        shapes = shapes or kept
    return shapes


def check_finite(variables: Any, where: str) -> None:
    """Checks that weights are finite.

    Args:
      variables: PyTree of arrays; abstract shapes are ignored.
      where: source of the weights, for the message.

    Raises:
      UserError: a value is NaN or infinite; the message names the arrays.
    """
    bad = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        # If an array is distributed across processes, check this process's shard.
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = leaf.addressable_data(0)
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            finite = np.isfinite(np.asarray(leaf, np.float32))
            if not finite.all():
                name = '/'.join(str(getattr(key, 'key', key)) for key in path)
                bad.append(f'{name} ({finite.size - finite.sum():,} of {finite.size:,} values)')
    if bad:
        more = f' and {len(bad) - 3} more' if len(bad) > 3 else ''
        raise UserError(f'{where} has weights that are NaN or infinite: {", ".join(bad[:3])}{more}')


def is_head(path: Path) -> bool:
    """Returns True if a parameter belongs to a classifier or an auxiliary head.

    All other parameters are the backbone, which `freeze='backbone'` freezes. A user-defined model
    names its last layer 'head' or 'classifier'.

    Args:
      path: path of the parameter below 'params'.
    """
    return path[0] in HEADS or is_auxiliary(path)


def is_auxiliary(path: Path) -> bool:
    """Returns True if the parameter at a path below 'params' belongs to an auxiliary head."""
    return path[0].lower().startswith('aux')

"""Base class of the models, and what is done with any model: initialise it, trace it, check it."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision.core.errors import UserError

Endpoints = dict[str, Any]
Path = tuple[str, ...]

# Last layers, by name, whose parameters are no backbone.
HEADS = ('fc', 'fc3', 'fc8', 'head', 'classifier')


class ImageModel(nn.Module):
    """Base of the models: `apply(variables, images, train=...) -> (logits, endpoints)`.

    images are float32 [B, H, W, C]; logits float32 [B, num_classes]. `endpoints` has `features`
    [B, D] (what the last layer sees), each stage's activation by name, and in training `aux`, a
    tuple of auxiliary logits, where the model has such heads. `dtype` is what is computed in;
    parameters are float32.

    A subclass sets `input_shape` and `default_classes`, the paper's, for tables and checks.
    """

    num_classes: int = 1000
    dtype: Any = jnp.float32

    input_shape: ClassVar[tuple[int, int, int]] = (224, 224, 3)
    default_classes: ClassVar[int] = 1000

    def record(self, endpoints: Endpoints, name: str, x: jax.Array) -> jax.Array:
        """Puts a stage's activation among the endpoints; gradients with respect to it can be had."""
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
        """Raises UserError unless the images are float [B, H, W, C] of a size the model can take."""
        if images.ndim != 4:
            raise UserError(f'{self._title} takes images [B, H, W, C], not shape {images.shape}')
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(f'{self._title} takes normalised float images, not {images.dtype}')
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
      model: unbound.
      input_shape: (H, W, C) of what it is fed.
      key: of the parameters.

    Returns:
      `params`, and `batch_stats` ({} where there is no BatchNorm).
    """
    images = jnp.zeros((2, *input_shape), jnp.float32)
    variables = model.init({'params': key, 'dropout': key}, images, train=True)
    return {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}


def run_once(function: Callable[[], Any]) -> Any:
    """Compiles and runs what a process runs a single time, as making parameters is.

    On a CPU the compiler's full effort on so many random generators takes 2 to 13 times as long
    (ResNet-50: 40 s for 9) and saves milliseconds. The values have the same bits.
    """
    on_cpu = jax.default_backend() == 'cpu'
    options = {'xla_backend_optimization_level': 1} if on_cpu else None
    return jax.jit(function, compiler_options=options)()


def abstract_variables(model: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Returns the shapes of 'params' and 'batch_stats', auxiliary heads and all; computes nothing.

    Raises:
      UserError: if the images are too small for the auxiliary heads and for the rest.
    """
    image = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    try:
        shapes = jax.eval_shape(lambda x: model.init(rngs, x, train=True), image)
    except UserError:
        if not getattr(model, 'aux_heads', False):
            raise
        return abstract_variables(model.clone(aux_heads=False), input_shape)
    return {k: v for k, v in shapes.items() if k in ('params', 'batch_stats')}


def check_contract(model: nn.Module, input_shape: tuple[int, int, int]) -> None:
    """Raises UserError unless `model` gives what the house expects: for models of a user's own.

    That is `(logits float32 [B, K], endpoints)` with `features` [B, D], from
    `__call__(images, train)`, in training and in evaluation.
    """
    title = type(model).__name__
    image = jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)
    rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    for train in (True, False):
        try:
            out, _ = jax.eval_shape(
                lambda x, train=train: model.init_with_output(rngs, x, train=train), image
            )
        except TypeError as e:
            raise UserError(
                f'model {title} cannot be called as model(images, train=...): {e}'
            ) from e
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


def check_finite(variables: Any, where: str) -> None:
    """Checks weights that were read.

    Args:
      variables: a PyTree of arrays; shapes in it are passed over.
      where: they come from, for the message.

    Raises:
      UserError: a value is NaN or infinite; names the arrays.
    """
    bad = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
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
    """True if a parameter, by its path below 'params', belongs to a classifier or auxiliary head.

    All others are the backbone, which `freeze='backbone'` freezes. A model of one's own calls its
    last layer 'head' or 'classifier'.
    """
    return path[0] in HEADS or is_auxiliary(path)


def is_auxiliary(path: Path) -> bool:
    """True if a parameter, by its path below 'params', belongs to an auxiliary head."""
    return path[0].lower().startswith('aux')

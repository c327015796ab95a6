"""The registry of ops, the choice of where an op string runs, and the random numbers of ops.

An op is a function of one image. It may have two forms, side by side in a file: one for the host,
in TensorFlow, and one for the device, in JAX, for images in memory of one size. Both forms compute
the same image, with the differences in this table; an op's docstring states any others:

| | host: `def op(image, rng, …)` | device: `def op_on_device(image, rng, …)` |
|---|---|---|
| `image` and result | uint8 [H, W, C]; `decode` takes bytes | float32 [H, W, C] in 0 … 255 |
| between ops | rounded and clipped to 0 … 255 | unchanged |
| sizes | may be unknown until the graph runs | known when the op string is compiled |
| `rng`, for random ops | `Rng` | `DeviceRng`, which gets the same requests |

The other parameters come from the op string. To add an op, write one form or both, and add a line
to `OPS`. A user-defined op needs no line; the op string names its module:
`'resize(32)|my_ops:blur(sigma=2)'`.

The random numbers depend only on seed, epoch, id and the op's position. Both forms of an op make
the same requests in the same order, so their results have the same distribution. The numbers
themselves differ:

* On the host they are computed in NumPy from integer hashes (`on_host`). Crop boxes and choices are
  therefore the same on every machine, with every version of TensorFlow, and for any number of
  threads, hosts and batches. Each hash is of five integers. The order of the examples
  (`vision.data.order`) and their splits hash fewer integers, so no two uses share a hash.
* On the device they come from a JAX key (`vision.core.state.image_key`).
"""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision.core.errors import UserError, unknown
from vision.core.startup import tf_cpu
from vision.preprocess import opstring

HOST, DEVICE = 'host', 'device'
# Limit on an op's random numbers on the host (random_erasing needs 43) and requests on the device.
PER_OP = 64
_SUFFIX = {HOST: '', DEVICE: '_on_device'}


@dataclasses.dataclass(frozen=True)
class Entry:
    """An op of the registry, whose module is imported on first use.

    Attributes:
      module: name of the module with its forms.
      name: name of the host form; the device form is `<name>_on_device`.
      places: places for which it has a form: HOST, DEVICE.
      views: True if it makes several views of an image, [V, H, W, C]; it must then be the last op.
    """

    module: str
    name: str
    places: tuple[str, ...]
    views: bool = False

    def form(self, place: str) -> Callable[..., Any] | None:
        """Returns the form for a place, or None."""
        if place not in self.places:
            return None
        return getattr(importlib.import_module(self.module), self.name + _SUFFIX[place])

    def draws(self) -> bool:
        """True if the op needs random numbers."""
        return 'rng' in inspect.signature(self.form(self.places[0])).parameters  # type: ignore


def _ops(file: str, *names: str, on_device: bool = False, views: bool = False) -> dict[str, Entry]:
    """Makes entries for ops in a file of this folder."""
    places = (HOST, DEVICE) if on_device else (HOST,)
    return {name: Entry(f'{__package__}.{file}', name, places, views) for name in names}


OPS: dict[str, Entry] = {
    **_ops('decode', 'decode'),
    **_ops('resampling', 'resize', on_device=True),
    **_ops('resampling', 'resize_small', 'scale_jitter'),
    **_ops('crops', 'central_crop', 'random_crop', 'translate', 'pad', 'flip_lr', on_device=True),
    **_ops('crops', 'random_resized_crop', 'flip_ud'),
    **_ops('resampling', 'affine', 'elastic', on_device=True),
    **_ops('resampling', 'rotate', 'zoom', 'shear'),
    **_ops('erase', 'cutout', on_device=True),
    **_ops('erase', 'random_erasing'),
    **_ops('color', 'rgb', on_device=True),
    **_ops('color', 'brightness', 'contrast', 'saturation', 'hue', 'grayscale', 'pca_noise'),
    **_ops('autoaugment', 'randaugment', 'autoaugment', 'trivialaugment_wide'),
    **_ops('autoaugment', 'three_augment'),
    **_ops('views', 'ten_crop', 'multi_scale_crops', 'inception_crops', views=True),
}


@functools.cache
def find(name: str) -> Entry:
    """Returns the entry of an op.

    Args:
      name: a key of `OPS`, or 'package.module:function' for a user-defined op.

    Raises:
      UserError: there is no such op, module or function.
    """
    if name in OPS:
        return OPS[name]
    if ':' not in name:
        raise unknown('op', name, OPS)
    module, _, function = name.partition(':')
    try:
        found = importlib.import_module(module)
    except ImportError as e:
        raise UserError(f'op {name!r}: cannot import {module!r} ({e})') from e
    # A user-defined op may have one form or both.
    places = tuple(p for p, suffix in _SUFFIX.items() if hasattr(found, function + suffix))
    if not places:
        raise UserError(
            f'op {name!r}: module {module!r} has neither {function!r} nor {function}_on_device'
        )
    return Entry(module, function, places)


def parse(text: str, place: str = HOST) -> tuple[opstring.Op, ...]:
    """Parses an op string and checks that it can run in a place, HOST or DEVICE.

    Raises:
      UserError: the op string is invalid, an op is unknown or has no form for the place, or an
        argument is invalid.
    """
    ops = opstring.parse(text)
    # The first parameters of a form are the image and, for random ops, the random numbers.
    for op in ops:
        entry = find(op.name)
        form = entry.form(place)
        if form is None:
            raise UserError(f'op {op.name!r} has no form that runs on the {place}')
        opstring.check_arguments(op, form, skip=2 if entry.draws() else 1)
    for op in ops[:-1]:
        if find(op.name).views:
            raise UserError(f'{op} makes several views of an image, so it must be the last op')
    return ops


def place(text: str, in_memory: bool) -> str:
    """Returns where an op string runs: DEVICE if possible, otherwise HOST.

    Args:
      text: the op string.
      in_memory: True if the images are in memory, decoded and all of one size.

    Raises:
      UserError: the op string is invalid, or an op is unknown.
    """
    return HOST if _why_host(text, in_memory) else DEVICE


def describe_place(text: str, in_memory: bool) -> str:
    """Describes where an op string runs: 'on the host, since hue has no form for the device'.

    The arguments and errors are those of `place`.
    """
    why = _why_host(text, in_memory)
    return f'on the host, since {why}' if why else 'on the device'


def _why_host(text: str, in_memory: bool) -> str:
    """Returns the reason why an op string cannot run on the device; empty if it can."""
    entries = [(op, find(op.name)) for op in opstring.parse(text)]
    if not in_memory:
        return 'the device takes only images of one size in memory'
    for op, entry in entries:
        form = entry.form(DEVICE)
        if form is None:
            return f'{op.name} has no form for the device'
        try:
            opstring.arguments(op, form)
        except TypeError:
            return f'the form of {op.name} for the device does not take all of {op}'
    return ''


class Rng:
    """Random numbers of one op on the host, used up in the order of the op's requests."""

    def __init__(self, uniform: Any):
        """Takes the op's row of `on_host.draw`, a tensor or array float64 [PER_OP]."""
        self._uniform = uniform
        self._used = 0

    def again(self) -> 'Rng':
        """Returns a copy that starts again with the first number, for another branch of a cond."""
        return Rng(self._uniform)

    def uniform(self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()) -> Any:
        """Returns numbers uniform in [low, high), float64 of a static shape."""
        tf = tf_cpu()
        count = int(np.prod(shape, dtype=int))
        if self._used + count > PER_OP:
            raise ValueError(f'an op may draw {PER_OP} numbers')
        values = self._uniform[self._used : self._used + count]
        self._used += count
        return low + (high - low) * tf.reshape(values, shape)

    def below(self, bound: Any) -> Any:
        """Returns integers uniform in 0 … bound − 1, int32 of the shape of `bound`.

        `bound` may be a tensor.
        """
        tf = tf_cpu()
        bound = tf.cast(bound, tf.float64)
        # The product may round up to `bound` itself.
        values = tf.floor(self.uniform(shape=tuple(bound.shape)) * bound)
        return tf.cast(tf.minimum(values, bound - 1), tf.int32)

    def chance(self, probability: float) -> Any:
        """Returns a boolean scalar that is true with a probability."""
        return self.uniform() < probability

    def field(self, shape: Any, low: float, high: float, dtype: str = 'float32') -> Any:
        """Returns numbers uniform in [low, high) for every pixel.

        They come from TensorFlow's generator, seeded with two of the op's numbers.

        Args:
          shape: any shape, possibly a tensor.
          low, high: bounds of the numbers.
          dtype: dtype of the result.
        """
        tf = tf_cpu()
        seed = tf.cast(self.uniform(shape=(2,)) * 2.0**62, tf.int64)
        return tf.random.stateless_uniform(shape, seed, low, high, dtype, alg='philox')


class DeviceRng:
    """Random numbers of one op on the device; each request has its own key."""

    def __init__(self, key: jax.Array, position: int = 0):
        """Takes the image's key and the op's position in the op string."""
        self._key = key
        self._next, self._end = position * PER_OP, (position + 1) * PER_OP

    def uniform(
        self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()
    ) -> jax.Array:
        """Returns numbers uniform in [low, high), float32 of a shape."""
        if self._next == self._end:
            raise ValueError(f'an op may ask for numbers {PER_OP} times')
        key = jax.random.fold_in(self._key, self._next)
        self._next += 1
        return jax.random.uniform(key, shape, minval=low, maxval=high)

    def below(self, bound: Any) -> jax.Array:
        """Returns integers uniform in 0 … bound − 1, int32 of the shape of `bound`."""
        bound = jnp.asarray(bound)
        values = jnp.floor(self.uniform(shape=bound.shape) * bound).astype(jnp.int32)
        return jnp.minimum(values, bound - 1)

    def chance(self, probability: float) -> jax.Array:
        """Returns a boolean scalar that is true with a probability."""
        return self.uniform() < probability

    def field(self, shape: tuple[int, ...], low: float, high: float) -> jax.Array:
        """Returns a number uniform in [low, high) for every pixel, float32 of a shape."""
        return self.uniform(low, high, shape)


def channels(ops: tuple[opstring.Op, ...]) -> int:
    """Returns the number of channels of the image after the leading `decode`; 3 without one."""
    if not ops or ops[0].name != 'decode':
        return 3
    from vision.preprocess.ops.decode import decode

    return opstring.arguments(ops[0], decode)['channels']

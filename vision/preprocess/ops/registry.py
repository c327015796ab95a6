"""The ops of op strings by name, where an op string runs, and the random numbers that ops ask for.

An op is a function of one image. It may have two forms, next to each other in a file: one for the
host, in TensorFlow, and one for the device, in JAX, for images that are in memory and all of one size. Both mean the
same; a docstring says what differs beyond this:

| | host: `def op(image, rng, …)` | device: `def op_on_device(image, rng, …)` |
|---|---|---|
| `image`, and what is returned | uint8 [H, W, C]; `decode` takes bytes | float32 [H, W, C] in 0 … 255 |
| between ops | rounded, clipped to 0 … 255 | as it is |
| sizes | may be unknown until the graph runs | known when the string is compiled |
| `rng`, of an op that draws | `Rng` | `DeviceRng`: other numbers, asked for in the same order |

The other parameters come from the op string. To add an op, write one form or both and add a line to `OPS`;
or write them in a module of your own and name it in the op string: `'resize(32)|my_ops:blur(sigma=2)'`.

The random numbers are functions of (seed, epoch, id, the op's position). An op asks its `Rng` for them on the host,
and its `DeviceRng` on the device. Both forms of an op
ask for the same numbers in the same order, so that they are equally distributed; the numbers are
others:

* on the host they are computed in NumPy from integer hashes (`on_host`). Crop boxes and choices of ops are the
  same on every machine and with every version of TensorFlow, and do not depend on the number of threads,
  hosts, or batches. Five integers are hashed here, and fewer for the order of the examples
  (`vision.data.order`) and their splits, so that no two uses share a hash;
* on the device they come from a JAX key (`vision.core.state.image_key`).
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
PER_OP = 64  # numbers on the host, of which random_erasing takes 43; requests on the device
_SUFFIX = {HOST: '', DEVICE: '_on_device'}


@dataclasses.dataclass(frozen=True)
class Entry:
    """An op of the registry; its module is imported when a form is first asked for.

    Attributes:
      module: where its forms are.
      name: of its host form; its device form is `<name>_on_device`.
      places: where it has a form: HOST, DEVICE.
      views: whether it makes several views of an image, [V, H, W, C], which no other op takes.
    """

    module: str
    name: str
    places: tuple[str, ...]
    views: bool = False

    def form(self, place: str) -> Callable[..., Any] | None:
        """The form that runs there, or None."""
        if place not in self.places:
            return None
        return getattr(importlib.import_module(self.module), self.name + _SUFFIX[place])

    def draws(self) -> bool:
        """True if the op draws random numbers."""
        return 'rng' in inspect.signature(self.form(self.places[0])).parameters  # type: ignore


def _ops(file: str, *names: str, on_device: bool = False, views: bool = False) -> dict[str, Entry]:
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
    **_ops('views', 'ten_crop', 'multi_scale_crops', 'inception_crops', views=True),
}


@functools.cache
def find(name: str) -> Entry:
    """Returns the entry of an op: one of `OPS`, or 'package.module:function' for a user's own.

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
    places = tuple(p for p, suffix in _SUFFIX.items() if hasattr(found, function + suffix))
    if not places:
        raise UserError(
            f'op {name!r}: module {module!r} has neither {function!r} nor {function}_on_device'
        )
    return Entry(module, function, places)


def parse(text: str, place: str = HOST) -> tuple[opstring.Op, ...]:
    """Reads and checks an op string for the place where it shall run.

    Raises:
      UserError: it is misspelt, an op is unknown or has no form there, or arguments do not fit.
    """
    ops = opstring.parse(text)
    for op in ops:
        entry = find(op.name)
        form = entry.form(place)
        if form is None:
            raise UserError(f'op {op.name!r} has no form that runs on the {place}')
        opstring.check_arguments(op, form, skip=2 if entry.draws() else 1)
    for op in ops[:-1]:
        if find(op.name).views:
            raise UserError(f'{op} makes several views of an image: it must be the last op')
    return ops


def place(text: str, in_memory: bool) -> str:
    """Decides where an op string runs: DEVICE where that is possible, else HOST.

    Args:
      text: the op string.
      in_memory: whether the images are in memory, decoded and all of one size.

    Raises:
      UserError: it is misspelt, or an op is unknown.
    """
    return HOST if _why_host(text, in_memory) else DEVICE


def describe_place(text: str, in_memory: bool) -> str:
    """Says where an op string runs, and why: 'on the host, since hue has no form for the device'.

    Args and errors as of `place`.
    """
    why = _why_host(text, in_memory)
    return f'on the host, since {why}' if why else 'on the device'


def _why_host(text: str, in_memory: bool) -> str:
    """Why an op string cannot run on the device; empty if it can."""
    entries = [(op, find(op.name)) for op in opstring.parse(text)]
    if not in_memory:
        return 'the images are not in memory, all of one size'
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
    """Hands out one op's random numbers on the host, in the order in which the op asks for them."""

    def __init__(self, uniform: Any):
        """Takes the op's row of `on_host.draw`: float64 [PER_OP], a tensor or an array."""
        self._uniform = uniform
        self._used = 0

    def again(self) -> 'Rng':
        """The same numbers from the beginning, for another branch of a condition."""
        return Rng(self._uniform)

    def uniform(self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()) -> Any:
        """Uniform in [low, high): float64 of that static shape."""
        tf = tf_cpu()
        count = int(np.prod(shape, dtype=int))
        if self._used + count > PER_OP:
            raise ValueError(f'an op may draw {PER_OP} numbers')
        values = self._uniform[self._used : self._used + count]
        self._used += count
        return low + (high - low) * tf.reshape(values, shape)

    def below(self, bound: Any) -> Any:
        """Integers of 0 … bound − 1, each equally likely: int32 of the shape of `bound`, which may be a tensor."""
        tf = tf_cpu()
        bound = tf.cast(bound, tf.float64)
        values = tf.floor(self.uniform(shape=tuple(bound.shape)) * bound)
        return tf.cast(tf.minimum(values, bound - 1), tf.int32)

    def chance(self, probability: float) -> Any:
        """True with that probability: a boolean scalar."""
        return self.uniform() < probability

    def field(self, shape: Any, low: float, high: float, dtype: str = 'float32') -> Any:
        """Uniform in [low, high), of any shape, a tensor too: where an op needs a number for every pixel.

        The generator is TensorFlow's, seeded with two of the op's numbers.
        """
        tf = tf_cpu()
        seed = tf.cast(self.uniform(shape=(2,)) * 2.0**62, tf.int64)
        return tf.random.stateless_uniform(shape, seed, low, high, dtype, alg='philox')


class DeviceRng:
    """`Rng` for the form of an op that runs on the device: each request has a key of its own."""

    def __init__(self, key: jax.Array, position: int = 0):
        """Takes the image's key, and the op's position in the op string."""
        self._key = key
        self._next, self._end = position * PER_OP, (position + 1) * PER_OP

    def uniform(
        self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()
    ) -> jax.Array:
        """Uniform in [low, high): float32 of that shape."""
        if self._next == self._end:
            raise ValueError(f'an op may ask for numbers {PER_OP} times')
        key = jax.random.fold_in(self._key, self._next)
        self._next += 1
        return jax.random.uniform(key, shape, minval=low, maxval=high)

    def below(self, bound: Any) -> jax.Array:
        """Integers of 0 … bound − 1, each equally likely: int32 of the shape of `bound`."""
        bound = jnp.asarray(bound)
        values = jnp.floor(self.uniform(shape=bound.shape) * bound).astype(jnp.int32)
        return jnp.minimum(values, bound - 1)

    def chance(self, probability: float) -> jax.Array:
        """True with that probability: a boolean scalar."""
        return self.uniform() < probability

    def field(self, shape: tuple[int, ...], low: float, high: float) -> jax.Array:
        """Uniform in [low, high), a number for every pixel: float32 of that shape."""
        return self.uniform(low, high, shape)


def channels(ops: tuple[opstring.Op, ...]) -> int:
    """The channels of the decoded image, by the string's leading `decode`; 3 if there is none."""
    if not ops or ops[0].name != 'decode':
        return 3
    from vision.preprocess.ops.decode import decode

    return opstring.arguments(ops[0], decode)['channels']

"""Step 2, preprocess: the ops of op strings, and where a string runs.

An op is a function of one image. It may have two forms, next to each other in a file: one for the
host, in TensorFlow, and one for the device, in JAX, for images that are in memory and all of one size. Both mean the
same; a docstring says what differs beyond this:

| | host: `def op(image, rng, …)` | device: `def op_on_device(image, rng, …)` |
|---|---|---|
| `image`, and what is returned | uint8 [H, W, C]; `decode` takes bytes | float32 [H, W, C] in 0 … 255 |
| between ops | rounded, clipped to 0 … 255 | as it is |
| sizes | may be unknown until the graph runs | known when the string is compiled |
| `rng`, of an op that draws | `draws.Rng` | `draws.DeviceRng`: other numbers, asked for in the same order |

The other parameters come from the op string. To add an op, write one form or both and add a line to `OPS`;
or write them in a module of your own and name it in the op string: `'resize(32)|my_ops:blur(sigma=2)'`.
"""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from vision.core.errors import UserError, unknown
from vision.preprocess import opstring
from vision.preprocess.draws import Rng

HOST, DEVICE = 'host', 'device'
_SUFFIX = {HOST: '', DEVICE: '_on_device'}


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the registry says of an op; its module is imported when a form is first asked for.

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
        """Whether the op draws random numbers."""
        return 'rng' in inspect.signature(self.form(self.places[0])).parameters  # type: ignore


def _ops(file: str, *names: str, on_device: bool = False, views: bool = False) -> dict[str, Entry]:
    places = (HOST, DEVICE) if on_device else (HOST,)
    return {name: Entry(f'{__name__}.{file}', name, places, views) for name in names}


OPS: dict[str, Entry] = {
    **_ops('decode', 'decode'),
    **_ops('resizing', 'resize', on_device=True),
    **_ops('resizing', 'resize_small', 'scale_jitter'),
    **_ops('crops', 'central_crop', 'random_crop', 'translate', 'pad', 'flip_lr', on_device=True),
    **_ops('crops', 'random_resized_crop', 'flip_ud'),
    **_ops('warp', 'affine', 'elastic', on_device=True),
    **_ops('warp', 'rotate', 'zoom', 'shear'),
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


def apply(ops: tuple[opstring.Op, ...], image: Any, draws: Any, decoded: bool = False) -> Any:
    """Runs ops on one image, on the host; `vision.preprocess.device.apply_ops` does on the device.

    Args:
      ops: as `parse` returns them.
      image: encoded bytes (a string scalar), or uint8 [H, W, C].
      draws: the image's random numbers (`draws.draw`): float64 [len(ops), PER_OP].
      decoded: the image is what the leading `decode` would return.

    Returns:
      uint8 [H', W', C'], or [V, H', W', C'] where the last op makes views.
    """
    from vision.preprocess.ops import fused

    position = 0
    while position < len(ops):
        op, rest = ops[position], ops[position + 1 :]
        if op.name == 'decode' and decoded:
            position += 1
        elif rest and fused.can_fuse(op, rest[0]):
            rngs = _rng(op, draws, position), _rng(rest[0], draws, position + 1)
            image = fused.apply(op, rest[0], image, rngs)
            position += 2
        else:
            rng, form = _rng(op, draws, position), find(op.name).form(HOST)
            assert form is not None  # `parse` saw to it
            image = form(image, *([rng] if rng else []), *op.args, **op.kwargs)
            position += 1
    return image


def _rng(op: opstring.Op, draws: Any, position: int) -> Rng | None:
    return Rng(draws[position]) if find(op.name).draws() else None


def channels(ops: tuple[opstring.Op, ...]) -> int:
    """The channels of the decoded image, by the string's leading `decode`; 3 if there is none."""
    if not ops or ops[0].name != 'decode':
        return 3
    from vision.preprocess.ops.decode import decode

    return opstring.arguments(ops[0], decode)['channels']

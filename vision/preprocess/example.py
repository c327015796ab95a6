"""One image's way through an op string, as a TensorFlow function that is traced once in a process."""

import dataclasses
import functools
import threading
from typing import Any

from vision.core.errors import UserError
from vision.core.startup import first_line, tf_cpu
from vision.preprocess.ops import on_host
from vision.preprocess.ops import registry as ops_lib
from vision.preprocess.ops.registry import PER_OP

# Tracing takes up to half a second of CPU time: threads that ask for one function wait for each other.
_TRACING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Example:
    """The function of one image: id, path or bytes or pixels, and random numbers → uint8 [H, W, C].

    Attributes:
      text: the op string; it begins with decode where images are encoded.
      name: of the source, for messages.
      encoded: whether images are bytes of an image file.
      by_path: whether they are the files' paths.
      image_shape: (H, W, C) of every image; None where each has its own.
      views: in how many draws an image comes; with several the result is [V, H, W, C].
      raw: the `RawCache` that files are read through, or None.
      decoded: the `DecodedCache` that images are decoded through, or None.
    """

    text: str
    name: str = dataclasses.field(compare=False)
    encoded: bool
    by_path: bool = False
    image_shape: tuple[int, ...] | None = None
    views: int = 1
    raw: Any = None
    decoded: Any = None

    @functools.cached_property
    def ops(self) -> tuple[Any, ...]:
        """The ops of the string."""
        return ops_lib.parse(self.text)

    @functools.cached_property
    def channels(self) -> int:
        """Of the decoded image."""
        return ops_lib.channels(self.ops)

    @property
    def draw_shape(self) -> tuple[int, ...]:
        """Of the random numbers: (ops, PER_OP), or (V, ops, PER_OP)."""
        num_draws = max(1, len(self.ops))  # unbatching rows without numbers ends TensorFlow
        return ((self.views,) if self.views > 1 else ()) + (num_draws, PER_OP)

    def data_spec(self) -> Any:
        """The `tf.TensorSpec` of what the function is given of an image."""
        tf = tf_cpu()
        if self.encoded:
            return tf.TensorSpec((), tf.string)
        return tf.TensorSpec(self.image_shape or (None, None, self.channels), tf.uint8)

    def function(self) -> Any:
        """The function, traced: the same one for equal examples.

        Raises:
          UserError: the ops do not fit the images, or leave them with more than one size.
        """
        tf = tf_cpu()
        cached = self.raw is None and self.decoded is None  # a cache belongs to one source
        try:
            with _TRACING:
                function = _shared(self) if cached else _trace(self)
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as e:
            raise UserError(
                f'{self.text!r} does not fit the images of {self.name}: {first_line(e)}'
            ) from e
        if not function.output_shapes.is_fully_defined():
            raise UserError(
                f'{self.text!r} makes images of more than one size; let it end in one: '
                'resize(H, W), central_crop(S), random_crop(S) or random_resized_crop(S)'
            )
        return function

    def apply(self, image: Any, draws: Any, decoded: bool = False) -> Any:
        """Each view of one image: [H, W, C], or [V, H, W, C] where there are several."""
        if self.views == 1:
            return on_host.apply(self.ops, image, draws, decoded)
        views = range(self.views)
        return tf_cpu().stack([on_host.apply(self.ops, image, draws[v], decoded) for v in views])

    def __call__(self, example: Any, data: Any, draws: Any) -> Any:
        """The function itself, in the graph."""
        tf = tf_cpu()
        if not self.encoded:
            return self.apply(data, draws)

        def encoded() -> Any:
            if self.raw is not None:
                return self.raw.read(example)
            return tf.io.read_file(data) if self.by_path else data

        def decode() -> Any:
            return on_host.apply(self.ops[:1], encoded(), None)

        shape = self.image_shape
        if self.decoded is None and shape is None:
            return self.apply(encoded(), draws)
        image = decode() if self.decoded is None else self.decoded.get(example, decode)
        image = image if shape is None else tf.ensure_shape(image, (*shape[:2], self.channels))
        return self.apply(image, draws, decoded=True)


def _trace(example: Example) -> Any:
    tf = tf_cpu()
    draws = tf.TensorSpec(example.draw_shape, tf.float64)
    traced = tf.function(example.__call__, autograph=False)
    return traced.get_concrete_function(tf.TensorSpec((), tf.int64), example.data_spec(), draws)


_shared = functools.lru_cache(maxsize=64)(_trace)

"""TensorFlow function that preprocesses one image by an op string; traced once per process."""

import dataclasses
import functools
import threading
from typing import Any

from vision.core.errors import UserError
from vision.core.startup import first_line, tf_cpu
from vision.preprocess.ops import on_host
from vision.preprocess.ops import registry as ops_lib
from vision.preprocess.ops.registry import PER_OP

# Tracing takes up to half a second of CPU time, so only one thread at a time traces a function.
_TRACING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Example:
    """The preprocessing function of one image.

    It maps an id, an image (path, encoded bytes or pixels) and random numbers to uint8 [H, W, C].

    Attributes:
      text: the op string; for encoded images it begins with decode.
      name: the source's name, for messages.
      encoded: True if images are the bytes of image files.
      by_path: True if images are given by the paths of their files.
      image_shape: (H, W, C) of every image, or None if the images differ in shape.
      views: number V of views; with V > 1 the result is [V, H, W, C].
      raw: the `RawCache` that reads files, or None.
      decoded: the `DecodedCache` that keeps decoded images, or None.
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
        """The parsed ops."""
        return ops_lib.parse(self.text)

    @functools.cached_property
    def channels(self) -> int:
        """The number of channels of the decoded image."""
        return ops_lib.channels(self.ops)

    @property
    def draw_shape(self) -> tuple[int, ...]:
        """The shape of an image's random numbers: (ops, PER_OP), or (V, ops, PER_OP)."""
        num_draws = max(1, len(self.ops))  # TensorFlow crashes on unbatching empty rows
        return ((self.views,) if self.views > 1 else ()) + (num_draws, PER_OP)

    def data_spec(self) -> Any:
        """Returns the `tf.TensorSpec` of the image argument."""
        tf = tf_cpu()
        if self.encoded:
            return tf.TensorSpec((), tf.string)
        return tf.TensorSpec(self.image_shape or (None, None, self.channels), tf.uint8)

    def function(self) -> Any:
        """Returns the traced function, which is shared by equal `Example`s without a cache.

        Raises:
          UserError: an op fails on the images, or the results differ in size.
        """
        tf = tf_cpu()
        # A function with a cache is not shared, because the cache belongs to one source.
        cached = self.raw is None and self.decoded is None
        # Trace the function; TensorFlow checks the shapes while tracing.
        try:
            with _TRACING:
                function = _shared(self) if cached else _trace(self)
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as e:
            raise UserError(
                f'{self.text!r} cannot be applied to the images of {self.name}: {first_line(e)}'
            ) from e
        # All results must have one size, so that they can be batched.
        if not function.output_shapes.is_fully_defined():
            raise UserError(
                f'{self.text!r} makes images of different sizes; end it with an op of fixed size, '
                'such as resize(H, W), central_crop(S), random_crop(S) or random_resized_crop(S)'
            )
        return function

    def apply(self, image: Any, draws: Any, decoded: bool = False) -> Any:
        """Applies the ops for each view: [H, W, C], or [V, H, W, C] for V > 1 views.

        Args:
          image: the image, encoded or as pixels.
          draws: random numbers of shape `draw_shape`.
          decoded: True if the image is decoded, so that the op decode is skipped.
        """
        if self.views == 1:
            return on_host.apply(self.ops, image, draws, decoded)
        # Each view has its own random numbers.
        views = range(self.views)
        return tf_cpu().stack([on_host.apply(self.ops, image, draws[v], decoded) for v in views])

    def __call__(self, example: Any, data: Any, draws: Any) -> Any:
        """Builds the function in a TensorFlow graph: reads, decodes and applies the ops."""
        tf = tf_cpu()
        # Pixels need no decoding.
        if not self.encoded:
            return self.apply(data, draws)

        def encoded() -> Any:
            if self.raw is not None:
                return self.raw.read(example)
            return tf.io.read_file(data) if self.by_path else data

        def decode() -> Any:
            return on_host.apply(self.ops[:1], encoded(), None)

        # With neither a cache nor a known shape, decode and the first crop may run as one op.
        shape = self.image_shape
        if self.decoded is None and shape is None:
            return self.apply(encoded(), draws)
        # Otherwise decode first, through the cache if there is one.
        image = decode() if self.decoded is None else self.decoded.get(example, decode)
        image = image if shape is None else tf.ensure_shape(image, (*shape[:2], self.channels))
        return self.apply(image, draws, decoded=True)


def _trace(example: Example) -> Any:
    """Traces the function of an example."""
    tf = tf_cpu()
    draws = tf.TensorSpec(example.draw_shape, tf.float64)
    traced = tf.function(example.__call__, autograph=False)
    return traced.get_concrete_function(tf.TensorSpec((), tf.int64), example.data_spec(), draws)


_shared = functools.lru_cache(maxsize=64)(_trace)

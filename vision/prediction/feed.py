"""Evaluation batches of arrays, files or splits for a run's model."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from vision.core import mesh as mesh_lib
from vision.core.text import as_list
from vision.data.source import ArraySource, FileSource, Source
from vision.evaluation.run import Run
from vision.prediction import given
from vision.preprocess import device, inputs
from vision.preprocess.device import Batch
from vision.preprocess.ops import registry as ops_lib
from vision.preprocess.ops.registry import HOST, place


@dataclasses.dataclass(frozen=True)
class Fed:
    """One pass over images in their order; it can be iterated over once.

    Attributes:
      num_examples: the number of images, without padding.
      batches: dicts with `image` [B, H, W, C] in 0 … 255 and `mask` [B]. The last batch is padded.
        An image that cannot be read keeps its position and has mask 0.
      corrupt: returns the images that could not be read so far, as path → reason.
    """

    num_examples: int
    batches: Iterable[Batch]
    corrupt: Callable[[], Mapping[str, str]]


class Feed:
    """Makes preprocessed batches of arrays, files, or a split of a run's data.

    The batch size is constant within a call. It is a power of two up to `evaluation.batch_size` on
    each device, so that few shapes are compiled.
    """

    def __init__(self, run: Run):
        """Uses the evaluation preprocessing and the image shapes of a run."""
        self._run = run
        self._ops = run.config.preprocess.eval

    def gather(self, images: Any) -> tuple[Source, bool]:
        """Turns a caller's images into a source; also returns whether it was a single image.

        See `given.gather`.
        """
        return given.gather(images, self.channels, self._run.image_shape)

    @property
    def channels(self) -> int:
        """The number of channels of a decoded image."""
        shape = self._run.image_shape
        return shape[-1] if shape else ops_lib.channels(ops_lib.parse(self._ops))

    def source(self, source: Source) -> Fed:
        """Makes batches of a source's images; images that cannot be read are masked."""
        size = self._batch_size(source.num_examples)
        if source.images is not None and inputs.on_device(source, self._ops):
            # Arrays in memory: preprocess on the device.
            return Fed(source.num_examples, self._on_device(source.images, size), dict)
        # Otherwise use the loader of evaluation, with one exception: if the model was trained on
        # arrays of one shape, images of other sizes are first resized to that shape.
        of_one_size = not source.encoded and source.image_shape is not None
        if of_one_size or self._host_only:
            every = inputs.EvalBatches(source, self._ops, size, self._run.mesh, skip_corrupt=True)
            return Fed(source.num_examples, every, lambda: every.corrupt)
        return self._resized(source, size)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Applies the part of the preprocessing that runs on the host to one decoded image.

        Several threads may call it at once. `prepared` then makes batches of the images.

        Args:
          image: uint8 [H, W, C] with as many channels as `channels`.

        Returns:
          uint8 [h, w, C] of one size for all images.

        Raises:
          ValueError: the ops cannot be applied to the image.
        """
        # Images with the shape of the training arrays need no work on the host.
        own = image.shape == self._run.image_shape
        if own and not self._host_only:
            return image
        from vision.core.startup import first_line, tf_cpu
        from vision.preprocess.example import Example

        tf = tf_cpu()
        example = Example(
            text=self._host_ops,
            name='images',
            encoded=False,
            image_shape=image.shape if own else None,
        )
        draws = tf.zeros(example.draw_shape, tf.float64)
        try:
            return example.function()(tf.constant(0, tf.int64), tf.constant(image), draws).numpy()
        except tf.errors.OpError as e:
            raise ValueError(first_line(e)) from None

    def prepare_encoded(self, data: bytes) -> np.ndarray:
        """Decodes and preprocesses one image file on the host, with the same pixels as `source`.

        It may be called by several threads at once; see `prepare` for the result.

        Raises:
          BadImage: the image cannot be read.
          ValueError: the ops cannot be applied to it.
        """
        from vision.preprocess.decode import read
        from vision.preprocess.graph import Planned, padding

        source, one = self._encoded
        planned = Planned(padding(source, 1)._replace(ids=np.zeros(1, np.int64)), [data])
        ((_, slots, images),) = one.direct([planned])
        # Find out why it failed, or read an image that only Pillow can decode.
        return images[0] if len(slots) else self.prepare(read(data, self.channels))

    @functools.cached_property
    def _encoded(self) -> tuple[Source, Any]:
        """A source of encoded images, and the host's part of their preprocessing."""
        from vision.preprocess.graph import Preprocess

        source = given.Given([b''])
        return source, Preprocess(source, self._host_ops, local=1, seed=0)

    def prepared(self, images: Iterable[np.ndarray | None], count: int) -> Fed:
        """Makes batches of `count` images that `prepare` returned; None is masked."""
        size = self._batch_size(count) * self._run.mesh.size

        def batches() -> Iterator[Batch]:
            rest = iter(images)
            while some := list(itertools.islice(rest, size)):
                # Padding and missing images have mask 0 and pixels of zeros.
                mask = np.zeros(size, np.float32)
                mask[: len(some)] = [image is not None for image in some]
                there = {slot: image for slot, image in enumerate(some) if image is not None}
                # Without a readable image, use the shape that the model or the device ops expect.
                shape = self._run.image_shape
                if self._host_only or shape is None:
                    shape = self._run.input_shape
                shape = next((image.shape for image in there.values()), shape)
                filled = np.zeros((size, *shape), np.uint8)
                for slot, image in there.items():
                    filled[slot] = image
                if self._host_only:
                    yield mesh_lib.put_batch({'image': filled, 'mask': mask}, self._run.mesh)
                else:
                    yield self._device_batch(filled, size, mask)

        return Fed(count, batches(), dict)

    @property
    def _host_only(self) -> bool:
        """True if encoded images are preprocessed on the host alone."""
        return self._run.image_shape is None or place(self._ops, True) == HOST

    @property
    def _host_ops(self) -> str:
        """The ops that encoded images pass on the host."""
        if self._host_only:
            return self._ops
        # Resize images to the array shape that the run was trained on.
        assert self._run.image_shape is not None
        height, width, channels = self._run.image_shape
        return f'decode(channels={channels})|resize({height}, {width})'

    def _resized(self, source: Source, size: int) -> Fed:
        """Resizes images of any size to the array shape that the run was trained on."""
        from vision.preprocess import pipeline

        size *= self._run.mesh.size
        decoded = pipeline.eval_batches(source, self._host_ops, batch_size=size, skip_corrupt=True)
        batches = (self._device_batch(b['image'], size, b['mask']) for b in decoded)
        return Fed(source.num_examples, batches, lambda: decoded.corrupt)

    def _on_device(self, images: np.ndarray, size: int) -> Iterator[Batch]:
        size *= self._run.mesh.size
        for start in range(0, len(images), size):
            yield self._device_batch(images[start : start + size], size)

    def _device_batch(self, images: np.ndarray, size: int, mask: np.ndarray | None = None) -> Batch:
        """Preprocesses up to `size` images on the device, padded to `size`."""
        # Padding and images that cannot be read get id −1, which becomes mask 0.
        real = np.ones(len(images), bool) if mask is None else mask > 0
        ids = np.full(size, -1)
        ids[: len(images)] = np.where(real, np.arange(len(images)), -1)
        padded = np.zeros((size, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        split = device.DeviceSplit(self._array_source(padded), self._ops, 0, self._run.mesh)
        return split.batch(ids, np.zeros(size, np.int64))

    def _array_source(self, images: np.ndarray) -> ArraySource:
        labels = np.zeros(len(images), np.int32)
        return ArraySource('images', self._run.class_names, images, labels)

    def _batch_size(self, num_examples: int) -> int:
        """Returns the batch size per device: a power of two, up to that of evaluation."""
        share = -(-num_examples // self._run.mesh.size)
        return min(self._run.config.evaluation.batch_size, 1 << (share - 1).bit_length())


def files(paths: Any) -> FileSource:
    """Returns a source of files, folders and globs, one or several; see `data.folder.files`."""
    from vision.data import folder

    return folder.files(as_list(paths))

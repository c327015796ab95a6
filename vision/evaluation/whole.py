"""Batches of whole images for dense evaluation: all images of a batch have one shape."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vision.core import mesh as mesh_lib
from vision.core.errors import UserError
from vision.core.startup import tf_cpu
from vision.data.source import BadImage, Source, read_each
from vision.preprocess.device import Batch

STRIDE = 32  # total stride of the networks that are evaluated densely


class WholeBatches:
    """Every example of a split once, with its mirror image, in batches of images of one shape.

    The model is compiled for each shape separately. To keep the number of shapes small, the longer
    side of an image is cropped around the centre to the shorter side plus a multiple of `STRIDE`
    pixels. The crop removes less than one position of the last stage. The examples are not in the
    order of their ids.

    Attributes:
      corrupt: unreadable images of the last pass: name → reason.
    """

    def __init__(
        self, source: Source, ops: str, batch_size: int, mesh: Mesh, skip_corrupt: bool = False
    ):
        """Prepares the split; the arguments are those of `vision.preprocess.inputs.EvalBatches`.

        Raises:
          UserError: there are several processes, whose batches would have different shapes.
        """
        from vision.preprocess.graph import parse

        if jax.process_count() > 1:
            raise UserError('dense evaluation runs in one process; this run has several')
        self.corrupt = dict[str, str]()
        self._source, self._mesh, self._skip_corrupt = source, mesh, skip_corrupt
        self._ops, self._batch_size = parse(source, ops), batch_size * mesh.size

    def __iter__(self) -> Iterator[Batch]:
        """Yields padded batches `{'image': uint8 [B, 2, H, W, C], 'id', 'label', 'mask'}`."""
        self.corrupt.clear()  # callers keep a reference to the dict
        seen = np.zeros(self._source.num_examples, bool)
        for ids, labels, images in self._dataset().as_numpy_iterator():
            seen[ids] = True
            # Pad to the batch size with mask 0 and id −1, and add the mirror images.
            missing = self._batch_size - len(ids)
            images = np.pad(images, [(0, missing), *[(0, 0)] * 3])
            batch = {
                'image': np.stack([images, images[:, :, ::-1]], axis=1),
                'id': np.pad(ids, (0, missing), constant_values=-1).astype(np.int32),
                'label': np.pad(labels, [(0, missing)] + [(0, 0)] * (labels.ndim - 1)),
                'mask': np.pad(np.ones(len(ids), np.float32), (0, missing)),
            }
            yield mesh_lib.put_batch(batch, self._mesh)
        # Examples that tf.data dropped could not be read.
        for example in np.flatnonzero(~seen):
            name, reason = self._why(int(example))
            if not self._skip_corrupt:
                raise UserError(
                    f'{name}: {reason}. Skip such images with --skip_corrupt; or repair or remove '
                    'the file, unless a run was trained on this data.'
                )
            self.corrupt[name] = reason

    def _dataset(self) -> Any:
        """Returns a tf.data.Dataset of (id, label, image) batches without unreadable images."""
        from vision.preprocess.ops import on_host

        tf, source = tf_cpu(), self._source

        def examples() -> Iterator[tuple[Any, ...]]:
            for chunk in source.stream():
                for example, image, label in zip(*chunk, strict=True):
                    if not isinstance(image, BadImage):
                        yield example, label, image

        def preprocess(example: Any, label: Any, image: Any) -> tuple[Any, Any, Any]:
            return example, label, _cut(on_host.apply(self._ops, image, None))

        # Encode the shape as one number, the key of a group.
        def shape_of(example: Any, label: Any, image: Any) -> Any:
            height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.int64))
            return height * 2**20 + width

        # Preprocess in parallel, then group images by their shape.
        several = source.multi_label
        signature = (
            tf.TensorSpec([], tf.int64),
            tf.TensorSpec(
                [len(source.class_names)] if several else [], tf.float32 if several else tf.int32
            ),
            tf.TensorSpec([], tf.string)
            if source.encoded
            else tf.TensorSpec(source.image_shape, tf.uint8),
        )
        dataset = tf.data.Dataset.from_generator(examples, output_signature=signature)
        dataset = dataset.map(preprocess, num_parallel_calls=4, deterministic=True)
        return dataset.ignore_errors().group_by_window(
            shape_of,
            lambda key, of_one_shape: of_one_shape.batch(self._batch_size),
            window_size=self._batch_size,
        )

    def _why(self, example: int) -> tuple[str, str]:
        """Returns the name of a dropped example and the reason."""
        from vision.preprocess.graph import decoded

        name = self._source.name_of(example)
        # A source that is read in order cannot read a single example again.
        if not self._source.indexed:
            return name, 'cannot be decoded'
        try:
            decoded(read_each(self._source, [example])[0][0])
        except BadImage as e:
            return name, str(e)
        return name, 'does not fit the ops'


def _cut(image: Any) -> Any:
    """Crops the longer side around the centre to the shorter side plus a multiple of STRIDE."""
    tf = tf_cpu()
    size = tf.shape(image)[:2]
    short = tf.reduce_min(size)
    new = short + (size - short) // STRIDE * STRIDE
    begin = (size - new) // 2
    return image[begin[0] : begin[0] + new[0], begin[1] : begin[1] + new[1]]

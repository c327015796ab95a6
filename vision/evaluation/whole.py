"""Whole images for dense evaluation: each keeps its shape, and those of one shape make a batch."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vision.core import mesh as mesh_lib
from vision.core.errors import UserError
from vision.core.tf_cpu import tf_cpu
from vision.data.source import ArraySource, FileSource, RecordSource, Source
from vision.preprocess.decode import BadImage, read, read_file
from vision.preprocess.device import Batch

STRIDE = 32  # of the networks that are evaluated densely


class WholeBatches:
    """Every example of a split once, and its mirror image, in batches of one shape each.

    So that a data set of photographs has a dozen shapes to compile and not a thousand, the longer
    side is cut in the middle to the shorter one plus a multiple of `STRIDE` pixels: what is lost
    is less than one position of the last stage. The order is not that of the ids.

    Attributes:
      corrupt: the images that could not be read in the last pass, by name, with the reason.
    """

    def __init__(
        self, source: Source, ops: str, batch_size: int, mesh: Mesh, skip_corrupt: bool = False
    ):
        """Prepares the split; arguments as of `vision.preprocess.inputs.EvalBatches`.

        Raises:
          UserError: there are several processes: their batches would not be of one shape.
        """
        from vision.preprocess import ops as ops_lib

        if jax.process_count() > 1:
            raise UserError('dense evaluation runs in one process; this run has several')
        self.corrupt = dict[str, str]()
        self._source, self._mesh, self._skip_corrupt = source, mesh, skip_corrupt
        self._ops, self._batch_size = ops_lib.parse(ops), batch_size * mesh.size
        encoded = not isinstance(source, ArraySource)
        if encoded and (not self._ops or self._ops[0].name != 'decode'):
            raise UserError(f'{source.name} holds encoded images: {ops!r} must begin with decode')

    def __iter__(self) -> Iterator[Batch]:
        """Yields `{'image': uint8 [B, 2, H, W, C], 'id', 'label', 'mask'}`, padded at the end."""
        self.corrupt, seen = {}, np.zeros(self._source.num_examples, bool)
        for ids, labels, images in self._dataset().as_numpy_iterator():
            seen[ids] = True
            missing = self._batch_size - len(ids)
            images = np.pad(images, [(0, missing), *[(0, 0)] * 3])
            batch = {
                'image': np.stack([images, images[:, :, ::-1]], axis=1),
                'id': np.pad(ids, (0, missing), constant_values=-1).astype(np.int32),
                'label': np.pad(labels, (0, missing)).astype(np.int32),
                'mask': np.pad(np.ones(len(ids), np.float32), (0, missing)),
            }
            yield mesh_lib.put_batch(batch, self._mesh)
        for example in np.flatnonzero(~seen):
            name, reason = self._why(int(example))
            if not self._skip_corrupt:
                raise UserError(
                    f'{name}: {reason}. Mend or remove it, or leave such images out: --skip_corrupt.'
                )
            self.corrupt[name] = reason

    def _dataset(self) -> Any:
        from vision.preprocess import ops as ops_lib

        tf = tf_cpu()

        def preprocess(example: Any, label: Any, content: Any) -> tuple[Any, Any, Any]:
            if isinstance(self._source, FileSource):
                content = tf.io.read_file(content)
            image = ops_lib.apply(self._ops, content, None)
            return example, label, _cut(image)

        def shape_of(example: Any, label: Any, image: Any) -> Any:
            height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.int64))
            return height * 2**20 + width

        dataset = self._examples().map(preprocess, num_parallel_calls=4, deterministic=True)
        return dataset.ignore_errors().group_by_window(
            shape_of,
            lambda key, of_one_shape: of_one_shape.batch(self._batch_size),
            window_size=self._batch_size,
        )

    def _examples(self) -> Any:
        """(id, label, content): a path, encoded bytes or pixels."""
        tf, source = tf_cpu(), self._source
        if isinstance(source, FileSource | ArraySource):
            files = isinstance(source, FileSource)
            content = list(source.paths) if files else source.images  # type: ignore
            labels = source.labels.astype(np.int64)
            return tf.data.Dataset.from_tensor_slices(
                (np.arange(source.num_examples), labels, content)
            )
        if isinstance(source, RecordSource):

            def read_one(example: np.ndarray) -> tuple[np.ndarray, bytes]:
                data, labels = source.read([int(example)])
                return labels[0], data[0]

            def record(example: Any) -> Any:
                label, data = tf.numpy_function(read_one, [example], [tf.int64, tf.string])
                return example, tf.ensure_shape(label, ()), tf.ensure_shape(data, ())

            return tf.data.Dataset.range(source.num_examples).map(record)
        from vision.data import tfds_source

        records = tfds_source.eval_records(source, 0, 1)
        return records.map(lambda example, epoch, label, data: (example, label, data))

    def _why(self, example: int) -> tuple[str, str]:
        """The name of an example that dropped out, and what was wrong with it."""
        if not isinstance(self._source, FileSource):
            return f'{self._source.name}, example {example}', 'cannot be decoded'
        name = self._source.paths[example]
        try:
            read(read_file(name))
        except BadImage as e:
            return name, str(e)
        return name, 'does not fit the ops'


def _cut(image: Any) -> Any:
    """Cuts the longer side to the shorter one plus a multiple of STRIDE, in the middle."""
    tf = tf_cpu()
    size = tf.shape(image)[:2]
    short = tf.reduce_min(size)
    new = short + (size - short) // STRIDE * STRIDE
    begin = (size - new) // 2
    return image[begin[0] : begin[0] + new[0], begin[1] : begin[1] + new[1]]

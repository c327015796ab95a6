"""TensorFlow Datasets: any image classification data set by name.

Data sets prepared as ArrayRecord are read by index, like folders: fully shuffled. TFRecord files,
which is what TFDS writes unless told otherwise, cannot be indexed, so a full shuffle is not to be
had. Each epoch, each host reads its own contiguous part of the split (the parts differ by at most
one example): its shards in a new order, several at a time, through a window of
`SHUFFLE_WINDOW` examples. The order is a function of (seed, epoch, host, number of hosts):
the same in every run with as many hosts, another with more. Resuming reads the records of the
begun epoch again, without decoding them; whole epochs are not read.
"""

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from vision.core.errors import UserError, nearest
from vision.core.tf_cpu import tf_cpu
from vision.data.order import hash64
from vision.data.source import ArraySource, RecordSource, TFDSSource

SHUFFLE_WINDOW = 16_384  # encoded examples in memory: 1.8 GB of ImageNet's
_SEGMENT = 200_000  # examples of a data set that is built at once; a new one stalls the pipeline
_SEGMENT_EPOCHS = 4
_RETRIES = 3  # of a download; TFDS's own 10 take minutes to find that there is no connection


def tfds(split: str, name: str, data_dir: str | None = None) -> TFDSSource | RecordSource:
    """Opens a split of a data set, downloading and preparing it where that was not done.

    Args:
      split: TFDS's name of the split, slices included: 'train[:90%]', 'train+test'.
      name: 'mnist', 'imagenet2012', 'cifar10:3.0.2', ….
      data_dir: where TFDS keeps its data; its own default unless given.

    Raises:
      UserError: no such data set or split, or one that has no images with labels.
    """
    tf_cpu()
    builder = _builder(name, data_dir)
    features = builder.info.features
    if features is None or not {'image', 'label'} <= set(features):
        raise UserError(
            f'TFDS {name!r} has no image and label; it has {", ".join(features or ["nothing"])}'
        )
    if not hasattr(features['label'], 'names'):
        raise UserError(f'TFDS {name!r} is no classification data set: its label is no class')
    count = _num_examples(builder, name, split)
    if count == 0:
        raise UserError(f'TFDS {name!r}: the split {split!r} has no examples')
    full_name, classes = f'{name}:{split}', tuple(features['label'].names)
    shape = features['image'].shape
    image_shape = tuple(shape) if None not in shape else None
    if builder.info.file_format.value == 'array_record':
        return RecordSource(full_name, classes, _by_index(builder, split), image_shape)
    return TFDSSource(full_name, classes, builder, split, count, image_shape)


def _by_index(builder: Any, split: str) -> Any:
    """The split's records as TFDS reads them at random, with the images left encoded."""
    import tensorflow_datasets as tfds_lib

    decoders = {'image': tfds_lib.decode.SkipDecoding()}
    try:
        return builder.as_data_source(split, decoders=decoders)
    except ImportError:  # tensorflow-datasets brings it along on Linux only
        raise UserError(
            f'{builder.info.name} was prepared as ArrayRecord: pip install array_record, '
            "or prepare it with file_format='tfrecord'"
        ) from None


def _builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds_lib

    data_dir = os.path.expanduser(data_dir) if data_dir else None
    try:
        builder = tfds_lib.builder(name, data_dir=data_dir)
    except tfds_lib.core.registered.DatasetNotFoundError:
        guess = nearest(name.split(':')[0], tfds_lib.list_builders(with_community_datasets=False))
        hint = f' Did you mean {guess!r}?' if guess else ''
        raise UserError(f'TFDS has no data set {name!r}.{hint}') from None
    except (ValueError, AssertionError) as e:
        raise UserError(f'TFDS {name!r}: {_first_line(e)}') from None
    _prepare(builder, name)
    return builder


def _prepare(builder: Any, name: str) -> None:
    """Downloads and prepares a data set, unless that was done."""
    import requests
    from tensorflow_datasets.core.download import downloader

    downloader.MAX_RETRIES = _RETRIES
    logging.getLogger('urllib3').setLevel(logging.ERROR)  # it tells every retry
    try:
        builder.download_and_prepare()
    except requests.exceptions.ConnectionError as e:
        host = getattr(getattr(e.args[0], 'pool', None), 'host', 'its server') if e.args else ''
        raise UserError(
            f'TFDS could not download {name!r}: no connection to {host}. Offline, point '
            'data.data_dir at a folder where it is prepared, or take files that are here: '
            'data.source=idx (MNIST and its like), npz or folder, and data.path'
        ) from None
    except Exception as e:  # whatever a download can raise: there is no common class
        raise UserError(
            f'TFDS could not prepare {name!r} in {builder.data_dir}: {_first_line(e)}. '
            'If it must be downloaded by hand, see its page on tensorflow.org/datasets.'
        ) from e


def _num_examples(builder: Any, name: str, split: str) -> int:
    try:
        if not builder.info.splits:  # a data set without statistics, as TFDS's own mocks are
            return int(builder.as_dataset(split=split).cardinality())
        return builder.info.splits[split].num_examples
    except (KeyError, ValueError, AssertionError) as e:
        known = ', '.join(sorted(builder.info.splits)) or 'none'
        raise UserError(
            f'TFDS {name!r} has no split {split!r} ({_first_line(e)}). Known: {known}.'
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().split('\n')[0].strip('\'"')


def as_arrays(source: TFDSSource | RecordSource) -> ArraySource | None:
    """Reads a whole split into memory, or returns None if its images are not of one known size.

    Small data sets (MNIST, CIFAR) can then be kept on the device.
    """
    if source.image_shape is None:
        return None
    images = np.empty((source.num_examples, *source.image_shape), np.uint8)
    labels = np.empty(source.num_examples, np.int32)
    read = 0
    tf = tf_cpu()
    try:
        for read, (image, label) in enumerate(_decoded(source), 1):
            images[read - 1], labels[read - 1] = image, label
    except tf.errors.OpError as e:
        raise UserError(
            f'{source.name}: example {read} cannot be read ({_first_line(e)}); '
            'remove the data set and prepare it again'
        ) from None
    if read != source.num_examples:
        raise UserError(f'{source.name}: {read} examples, not {source.num_examples}')
    return ArraySource(source.name, source.class_names, images, labels)


def _decoded(source: TFDSSource | RecordSource) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the images and labels of a split whose images TensorFlow can decode, in order."""
    tf = tf_cpu()
    if isinstance(source, RecordSource):
        channels = source.image_shape[-1] if source.image_shape else 3
        for i in range(source.num_examples):
            (image,), (label,) = source.read([i])
            yield tf.io.decode_image(image, channels).numpy(), int(label)
        return
    for example in _dataset(source.builder, source.split, None, decode=True):
        yield example['image'].numpy(), int(example['label'])


def train_segments(
    source: TFDSSource,
    local: int,
    seed: int,
    start_step: int,
    process_index: int,
    process_count: int,
    repeats: int = 1,
) -> Iterator[Any]:
    """Yields data sets of (id, epoch, label, bytes) that follow one another, from a step on.

    Args:
      source: the split.
      local: examples of a batch on this host.
      seed: of the run.
      start_step: the first batch.
      process_index: this host.
      process_count: of how many.
      repeats: how often each example comes in its epoch, which then shows fewer of them; in place
        of the epoch stands the view, as `order.batch_ids` counts them.
    """
    part, first, size = _host_part(source, process_index, process_count)
    if size == 0:
        raise UserError(f'{source.name} has fewer examples than there are hosts')
    position = start_step * local
    while True:
        epochs = max(1, min(_SEGMENT_EPOCHS, _SEGMENT // size))
        end = (position // size + epochs) * size
        end = -(-end // local) * local
        records = None
        for epoch in range(position // size, -(-end // size)):
            order = int(hash64(seed, epoch, process_index, process_count) >> np.uint64(33))
            these = _records(source, part, first, order, epoch)
            these = these if repeats == 1 else _views(these, repeats)
            begin = max(position - epoch * size, 0)
            these = these.skip(begin).take(min(size, end - epoch * size) - begin)
            records = these if records is None else records.concatenate(these)
        yield records
        position = end


def eval_records(source: TFDSSource, process_index: int, process_count: int) -> Any:
    """This host's part of the split in order: a data set of (id, epoch 0, label, bytes)."""
    part, first, _ = _host_part(source, process_index, process_count)
    return _records(source, part, first, None, 0)


def records(source: TFDSSource, count: int = -1) -> Iterator[tuple[int, int, int, bytes]]:
    """Yields (id, epoch 0, label, bytes) of the first `count` records, of all if it is negative.

    Raises:
      UserError: a record that cannot be read.
    """
    tf = tf_cpu()
    try:
        yield from eval_records(source, 0, 1).take(count).as_numpy_iterator()
    except tf.errors.OpError as e:
        raise unreadable(source, _first_line(e).split(' [')[0]) from None


def unreadable(source: TFDSSource, reason: str) -> UserError:
    """The error for a split whose files are damaged; the reason is TensorFlow's."""
    return UserError(
        f'{source.name}: its records cannot be read ({reason}); '
        'remove the data set and prepare it again'
    )


def _host_part(source: TFDSSource, index: int, count: int) -> tuple[Any, int, int]:
    """This host's part: as TFDS names it, the id of its first example, its size."""
    import tensorflow_datasets as tfds_lib

    share, extra = divmod(source.num_examples, count)
    size = share + (index < extra)
    if count == 1:
        return source.split, 0, size
    part = tfds_lib.even_splits(source.split, n=count)[index]
    return part, index * share + min(index, extra), size


def _records(source: TFDSSource, part: Any, first: int, order: int | None, epoch: int) -> Any:
    """Records of a part of the split, shuffled by the number `order` or in order if it is None."""
    tf = tf_cpu()
    begins = _shard_begins(source.builder, part) or [('', 0)]
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            tf.constant([name for name, _ in begins], tf.string),
            tf.constant([begin for _, begin in begins], tf.int64),
        ),
        default_value=0,
    )

    def record(example: dict[str, Any]) -> tuple[Any, ...]:
        shard = tf.strings.regex_replace(example['tfds_id'], r'__\d+$', '')
        index = tf.strings.regex_replace(example['tfds_id'], r'^.*__', '')
        place = table.lookup(shard) + tf.strings.to_number(index, tf.int64)
        label = tf.cast(example['label'], tf.int64)
        return place + first, tf.constant(epoch, tf.int64), label, example['image']

    dataset = _dataset(source.builder, part, order, decode=False).map(record)
    if order is not None:
        size = min(SHUFFLE_WINDOW, source.num_examples)
        dataset = dataset.shuffle(size, seed=order, reshuffle_each_iteration=False)
    return dataset


def _views(records: Any, repeats: int) -> Any:
    """Each record `repeats` times, with the number of the view in place of the epoch."""
    tf = tf_cpu()

    def views(example: Any, epoch: Any, label: Any, image: Any) -> Any:
        numbers = tf.data.Dataset.range(repeats)
        return numbers.map(lambda view: (example, epoch * repeats + view, label, image))

    return records.flat_map(views)


def _shard_begins(builder: Any, part: Any) -> list[tuple[str, int]]:
    """What to add to an example's index in its shard to have its index in the part."""
    begins, before = [], 0
    for instruction in _instructions(builder, part):
        begins.append((os.path.basename(instruction.filename), before - instruction.skip))
        all_of_it = instruction.examples_in_shard - instruction.skip
        before += all_of_it if instruction.take == -1 else instruction.take
    return begins


def _instructions(builder: Any, part: Any) -> list[Any]:
    try:
        return builder.info.splits[part].file_instructions
    except (KeyError, ValueError):
        return []


def _dataset(builder: Any, part: Any, order: int | None, decode: bool) -> Any:
    import tensorflow_datasets as tfds_lib

    tf = tf_cpu()
    options = tf.data.Options()
    options.deterministic = True
    config = tfds_lib.ReadConfig(
        options=options,
        try_autocache=False,
        add_tfds_id=True,
        shuffle_seed=order,
        skip_prefetch=True,
        interleave_cycle_length=1 if order is None else 16,
    )
    return builder.as_dataset(
        split=part,
        shuffle_files=order is not None,
        read_config=config,
        decoders=None if decode else {'image': tfds_lib.decode.SkipDecoding()},
    )

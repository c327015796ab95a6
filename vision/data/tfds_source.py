"""Sources of TensorFlow Datasets: image classification data sets with one or several labels.

Data sets prepared as ArrayRecord are read by index and shuffled fully. TFRecord files, which TFDS
writes by default, have no index, so they are shuffled approximately. In each epoch every host reads
its own contiguous part of the split (the parts differ by at most one example). It reads the shards
in a new order, several at a time, and shuffles within a window of `SHUFFLE_WINDOW` examples. The
order depends on seed, epoch, host and number of hosts. A resumed run reads no earlier epochs. It
reads the records of the current epoch again from the start of the epoch, but does not decode those
that it skips.
"""

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vision.core.errors import UserError, nearest
from vision.core.startup import first_line, tf_cpu
from vision.data.source import ArraySource, BadImage, Chunk, Source, as_labels, multi_hot

SHUFFLE_WINDOW = 16_384  # encoded examples in memory; 1.8 GB for ImageNet
_CHUNK = 64  # examples per chunk
_RETRIES = 3  # per download; TFDS's default of 10 takes minutes without a connection


@dataclasses.dataclass(eq=False)
class TFDSSource(Source):
    """A split of a TFDS data set in files that can only be read in sequence.

    Attributes:
      name: 'mnist:train[:55000]'.
      class_names: K names in the order of the labels.
      builder: the prepared `tfds.core.DatasetBuilder`.
      split: TFDS name of the split, possibly with slices.
      num_examples: number of examples in the split.
      image_shape: (H, W, C) of every image, or None if the images differ in shape.
      label_key: name of the feature with the label.
      multi_label: True if that feature is a sequence.
    """

    name: str
    class_names: tuple[str, ...]
    builder: Any
    split: str
    num_examples: int
    image_shape: tuple[int, ...] | None = None
    label_key: str = 'label'
    multi_label: bool = False
    indexed = False

    def identities(self) -> Iterator[tuple[str, str]]:
        """Yields a single pair for all examples: name, version, split and number of examples."""
        version = self.builder.info.version
        yield f'{self.name}, version {version}, {self.num_examples} examples', ''

    def stream(self, order: int | None = None, part: int = 0, parts: int = 1) -> Iterator[Chunk]:
        """Yields a part of the split, in order or shuffled within a window (see `Source`).

        Raises:
          UserError: the files are damaged.
        """
        tf = tf_cpu()
        records = _records(self, order, part, parts).batch(_CHUNK).prefetch(1)
        try:
            for ids, images, labels in records.as_numpy_iterator():
                _check_labelled(self.name, labels)
                yield ids, images, as_labels(labels)
        except tf.errors.OpError as e:
            raise UserError(
                f'{self.name}: its records cannot be read ({first_line(e)}); '
                'remove the data set and prepare it again'
            ) from None

    def subset(self, ids: Sequence[int] | np.ndarray) -> Source:
        """Raises UserError, because single examples cannot be read."""
        raise UserError(
            f'{self.name} can only be read in sequence; set data.in_memory, or name files'
        )


@dataclasses.dataclass(eq=False)
class RecordSource(Source):
    """Encoded images that can be read by index, such as a TFDS data set in ArrayRecord files.

    Attributes:
      name: 'imagenet2012:train'.
      class_names: K names in the order of the labels.
      records: N dicts `{'image': bytes, label_key: int}`, read by `__getitem__`, or faster by
        `__getitems__` if it exists.
      image_shape: (H, W, C) of every image, or None if the images differ in shape.
      label_key: name of a record's label.
      multi_label: True if a record has a sequence of labels.
      version: version of the data set, which identifies all its examples; None identifies each
        example by its name and label.
    """

    name: str
    class_names: tuple[str, ...]
    records: Any
    image_shape: tuple[int, ...] | None = None
    label_key: str = 'label'
    multi_label: bool = False
    version: str | None = None

    def __post_init__(self) -> None:
        self.num_examples = len(self.records)

    def identities(self) -> Iterator[tuple[str, str]]:
        """Yields a single pair with name, version and size; without a version one per example."""
        if self.version is None:
            return super().identities()
        return iter([(f'{self.name}, version {self.version}, {self.num_examples} examples', '')])

    def read(self, ids: Sequence[int]) -> tuple[list[bytes], np.ndarray]:
        """Returns the encoded images, and labels int64 [b] or float32 [b, K]."""
        together = getattr(self.records, '__getitems__', None)
        found = list(together(ids) if together else map(self.records.__getitem__, ids))
        # ArrayRecord returns empty parts for a file that was cut off.
        if any(None in record.values() for record in found):
            raise BadImage('an incomplete record: its file was cut off')
        labels = [record[self.label_key] for record in found]
        several = self.multi_label
        # Encode several labels as a multi-hot row.
        of_each = multi_hot(labels, len(self.class_names)) if several else np.array(labels)
        _check_labelled(self.name, of_each)
        return [record['image'] for record in found], of_each


def _check_labelled(name: str, labels: np.ndarray) -> None:
    """Raises UserError if an example has the label −1, which TFDS uses for unknown labels.

    See TFDS issue 1218.
    """
    if (labels < 0).any():
        raise UserError(f'{name}: the examples have no labels (they are -1); use another split')


def tfds(split: str, name: str, data_dir: str | None = None) -> TFDSSource | RecordSource:
    """Opens a split of a TFDS data set; downloads and prepares the data set if necessary.

    Args:
      split: TFDS name of the split, possibly with slices: 'train[:90%]', 'train+test'.
      name: 'mnist', 'imagenet2012', 'cifar10:3.0.2', ….
      data_dir: folder of the prepared data sets; None is TFDS's default.

    Raises:
      UserError: there is no such data set or split, it has no labelled images, or it cannot be
        downloaded.
    """
    tf_cpu()
    builder = _builder(name, data_dir)
    # Find the features with the image and the label.
    features = builder.info.features
    key = next((k for k in ('label', 'labels') if k in (features or ())), None)
    if features is None or 'image' not in features or key is None:
        raise UserError(
            f'TFDS {name!r} has no image and label; it has {", ".join(features or ["nothing"])}'
        )
    several = hasattr(features[key], 'feature')  # a sequence of labels
    label = features[key].feature if several else features[key]
    if not hasattr(label, 'names'):
        raise UserError(
            f'TFDS {name!r} is not a classification data set: its {key} is not a class label'
        )
    # Choose the source by the format of the files.
    count = _num_examples(builder, name, split)
    if count == 0:
        raise UserError(f'TFDS {name!r}: the split {split!r} has no examples')
    full_name, classes = f'{name}:{split}', tuple(label.names)
    shape = features['image'].shape
    about = (tuple(shape) if None not in shape else None, key, several)
    if builder.info.file_format.value == 'array_record':
        version = str(builder.info.version)
        return RecordSource(full_name, classes, _by_index(builder, split), *about, version)
    return TFDSSource(full_name, classes, builder, split, count, *about)


def _by_index(builder: Any, split: str) -> Any:
    """Returns the split's records for random access, with encoded images."""
    import tensorflow_datasets as tfds_lib

    decoders = {'image': tfds_lib.decode.SkipDecoding()}
    try:
        return builder.as_data_source(split, decoders=decoders)
    except ImportError:  # tensorflow-datasets depends on array_record on Linux only
        raise UserError(
            f'{builder.info.name} was prepared as ArrayRecord: pip install array_record, '
            "or prepare it with file_format='tfrecord'"
        ) from None


def _builder(name: str, data_dir: str | None) -> Any:
    """Returns the prepared builder of a data set; raises UserError if there is none."""
    import tensorflow_datasets as tfds_lib

    data_dir = os.path.expanduser(data_dir) if data_dir else None
    try:
        builder = tfds_lib.builder(name, data_dir=data_dir)
    except tfds_lib.core.registered.DatasetNotFoundError:
        # Suggest a data set with a similar name.
        guess = nearest(name.split(':')[0], tfds_lib.list_builders(with_community_datasets=False))
        hint = f' Did you mean {guess!r}?' if guess else ''
        raise UserError(f'TFDS has no data set {name!r}.{hint}') from None
    except (ValueError, AssertionError) as e:
        raise UserError(f'TFDS {name!r}: {first_line(e)}') from None
    _prepare(builder, name)
    return builder


def _prepare(builder: Any, name: str) -> None:
    """Downloads and prepares a data set, unless it is prepared already."""
    import requests
    from tensorflow_datasets.core.download import downloader

    # Shorten the retries of TFDS, and silence them.
    downloader.MAX_RETRIES = _RETRIES
    logging.getLogger('urllib3').setLevel(logging.ERROR)  # it logs every retry
    try:
        builder.download_and_prepare()
    except requests.exceptions.ConnectionError as e:
        host = getattr(getattr(e.args[0], 'pool', None), 'host', 'its server') if e.args else ''
        raise UserError(
            f'TFDS could not download {name!r}: no connection to {host}. Offline, set '
            'data.data_dir to a folder where it is prepared, or use local files: '
            'data.source=idx (the format of MNIST), npz or folder, with data.path'
        ) from None
    except Exception as e:  # the errors of downloads have no common class
        raise UserError(
            f'TFDS could not prepare {name!r} in {builder.data_dir}: {first_line(e)}. '
            'If it must be downloaded by hand, see its page on tensorflow.org/datasets.'
        ) from e


def _num_examples(builder: Any, name: str, split: str) -> int:
    """Returns the number of examples of a split; raises UserError if there is no such split."""
    try:
        if not builder.info.splits:  # a data set without statistics, such as TFDS's mock data
            return int(builder.as_dataset(split=split).cardinality())
        return builder.info.splits[split].num_examples
    except (KeyError, ValueError, AssertionError) as e:
        known = ', '.join(sorted(builder.info.splits)) or 'none'
        raise UserError(
            f'TFDS {name!r} has no split {split!r} ({first_line(e)}). Known: {known}.'
        ) from None


def as_arrays(source: Source) -> ArraySource | None:
    """Reads a whole split into memory; returns None if its images do not all have one known size.

    Small data sets (MNIST, CIFAR) can then be kept on the device.
    """
    if source.image_shape is None:
        return None
    tf = tf_cpu()
    images = np.empty((source.num_examples, *source.image_shape), np.uint8)
    read, labels = 0, []
    # Decode the images one after another into one array.
    for _, encoded, of_these in source.stream():
        labels.append(of_these)
        for data in encoded:
            if isinstance(data, BadImage):
                raise _unreadable(source, read, str(data))
            try:
                images[read] = tf.io.decode_image(data, source.image_shape[-1])
            except tf.errors.OpError as e:
                raise _unreadable(source, read, first_line(e)) from None
            read += 1
    # The stream may end early if files are damaged.
    if read != source.num_examples:
        raise UserError(
            f'{source.name} has {read} examples instead of {source.num_examples}; '
            'remove the data set and prepare it again'
        )
    return ArraySource(source.name, source.class_names, images, np.concatenate(labels))


def _unreadable(source: Source, example: int, reason: str) -> UserError:
    """Returns the error for an example that cannot be read."""
    return UserError(
        f'{source.name}: example {example} cannot be read ({reason}); '
        'remove the data set and prepare it again'
    )


def _records(source: TFDSSource, order: int | None, index: int, count: int) -> Any:
    """Returns a tf.data.Dataset of (id, encoded image, label) for a part of the split.

    Args:
      source: the split.
      order: seed of the shuffled order, or None.
      index: number of the part, from 0.
      count: number of parts.
    """
    import tensorflow_datasets as tfds_lib

    tf = tf_cpu()
    # Take this host's part of the split.
    part = tfds_lib.even_splits(source.split, n=count)[index] if count > 1 else source.split
    # Find the id of the part's first example, and make a table of the start of each shard.
    share, extra = divmod(source.num_examples, count)
    first = index * share + min(index, extra)
    begins = _shard_begins(source.builder, part) or [('', 0)]
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            tf.constant([name for name, _ in begins], tf.string),
            tf.constant([begin for _, begin in begins], tf.int64),
        ),
        default_value=0,
    )

    def record(example: dict[str, Any]) -> tuple[Any, ...]:
        # TFDS identifies an example by its shard and its index in the shard.
        shard = tf.strings.regex_replace(example['tfds_id'], r'__\d+$', '')
        index = tf.strings.regex_replace(example['tfds_id'], r'^.*__', '')
        place = table.lookup(shard) + tf.strings.to_number(index, tf.int64)
        label = tf.cast(example[source.label_key], tf.int64)
        # Encode several labels as a multi-hot row.
        if source.multi_label:
            of_classes = tf.one_hot(label, len(source.class_names), True, False)
            label = tf.cast(tf.reduce_any(of_classes, axis=0), tf.float32)
        return place + first, example['image'], label

    dataset = _dataset(source.builder, part, order).map(record)
    if order is not None:
        # Shuffle within a window, in the same way in every run.
        size = min(SHUFFLE_WINDOW, source.num_examples)
        dataset = dataset.shuffle(size, seed=order, reshuffle_each_iteration=False)
    return dataset


def _shard_begins(builder: Any, part: Any) -> list[tuple[str, int]]:
    """Returns the name of each shard, and the offset of its indices within the part."""
    begins, before = [], 0
    for instruction in _instructions(builder, part):
        begins.append((os.path.basename(instruction.filename), before - instruction.skip))
        # A take of −1 stands for the rest of the shard.
        all_of_it = instruction.examples_in_shard - instruction.skip
        before += all_of_it if instruction.take == -1 else instruction.take
    return begins


def _instructions(builder: Any, part: Any) -> list[Any]:
    """Returns TFDS's instructions for reading the shards of a part; [] if it has none."""
    try:
        return builder.info.splits[part].file_instructions
    except (KeyError, ValueError):
        return []


def _dataset(builder: Any, part: Any, order: int | None) -> Any:
    """Returns TFDS's dataset of a part, with encoded images and the ids of the examples."""
    import tensorflow_datasets as tfds_lib

    tf = tf_cpu()
    # The order must be reproducible; without a seed the shards are read one after another.
    options = tf.data.Options()
    options.deterministic = True
    # The thread that tunes an iterator may delay its end, and that of the process, by a minute.
    options.autotune.enabled = False
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
        decoders={'image': tfds_lib.decode.SkipDecoding()},
    )

"""The order in which examples enter the pipeline: TensorFlow data sets of rows.

A row is one slot of one batch. After the rows of each batch comes a tick, a row without an image
that carries what the batch should hold. Images that fail drop out of the stream; the ticks say
where, so the others stay in their places and no example pays for the possibility.
"""

import os
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import numpy as np

from vision.core.tf_cpu import tf_cpu
from vision.data.order import apart, batch_ids
from vision.data.source import FileSource, Indexed, RecordSource
from vision.preprocess.draws import PER_OP, draw


class Plan(NamedTuple):
    """What one host's part of a batch should hold; −1 in `ids` is padding.

    Attributes:
      ids: int64 [b].
      epochs: int64 [b]; with repeated augmentation the view, as `order.batch_ids` counts them.
      labels: int64 [b].
    """

    ids: np.ndarray
    epochs: np.ndarray
    labels: np.ndarray


def train_plan(
    source: Indexed, seed: int, batch_size: int, part: slice, repeats: int
) -> Callable[[int], Plan]:
    """Returns the function from a step to the host's rows `part` of that batch, labels to come."""

    def plan(step: int) -> Plan:
        ids, epochs = batch_ids(seed, source.num_examples, batch_size, step, repeats)
        return Plan(ids[part], epochs[part], np.zeros_like(ids[part]))

    return plan


def eval_plan(
    source: Indexed, batch_size: int, process_index: int, process_count: int
) -> Callable[[int], Plan]:
    """Returns the function from a step to the host's rows of that batch, labels to come.

    Batches hold the ids in order. What remains for the last one is shared among the hosts, so
    that their shares of the split differ by one example at most.
    """
    local = batch_size // process_count

    def plan(step: int) -> Plan:
        remaining = min(batch_size, source.num_examples - step * batch_size)
        share, extra = divmod(remaining, process_count)
        first = step * batch_size + process_index * share + min(process_index, extra)
        ids = np.full(local, -1)
        count = share + (process_index < extra)
        ids[:count] = first + np.arange(count)
        return Plan(ids, *np.zeros((2, local), np.int64))

    return plan


def indexed(
    source: Indexed,
    plan: Callable[[int], Plan],
    steps: tuple[int, int],
    seed: int,
    num_ops: int,
) -> Any:
    """Rows of a source that can be indexed.

    Args:
      source: files, arrays or records.
      plan: what each step's batch holds; the labels are filled in here.
      steps: the first, and one past the last.
      seed: of the run.
      num_ops: how many ops draw random numbers.

    Returns:
      A data set of dicts: slot int64, id int64, draws float64 [num_ops, PER_OP], plan (bytes of
      the Plan in a tick, else empty), data (a path, encoded bytes, or uint8 [H, W, C]).
    """
    tf = tf_cpu()
    content, kind, shape = _content(source)

    def rows(step: np.int64) -> list[np.ndarray]:
        this = plan(int(step))
        data, labels = content(this.ids)
        labelled = this._replace(labels=np.where(this.ids < 0, 0, labels).astype(np.int64))
        return [*rows_of(labelled, seed, num_ops), data]

    def map_rows(step: Any) -> dict[str, Any]:
        values = tf.numpy_function(rows, [step], [*_row_types(), kind])
        return named(values, num_ops, shape)

    return tf.data.Dataset.range(*steps).map(map_rows).prefetch(1).unbatch()


def _content(source: Indexed) -> tuple[Callable[[np.ndarray], tuple], Any, tuple[int, ...]]:
    """What gives the data and labels of ids [b], with a row more for the tick; its type and shape.

    The tick's row, like those of padding, is never looked at.
    """
    tf = tf_cpu()
    if isinstance(source, RecordSource):

        def read(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            data, labels = source.read(ids.tolist())
            return np.array([*data, b''], object), labels

        return read, tf.string, ()
    if isinstance(source, FileSource):
        data = np.empty(source.num_examples + 1, np.object_)
        data[:] = [*map(os.fsencode, source.paths), b'']
        kind, shape = tf.string, ()
    else:
        data = source.images
        kind, shape = tf.uint8, data.shape[1:]
    return lambda ids: (data[np.append(ids, -1)], source.labels[ids]), kind, shape


def rows_of(plan: Plan, seed: int, num_ops: int) -> list[np.ndarray]:
    """A batch's rows and its tick, all but the data: slot, id, draws, plan."""
    size = len(plan.ids)
    draws = np.zeros((size + 1, num_ops, PER_OP))
    draws[:size] = draw(seed, plan.epochs, plan.ids, num_ops)
    packed = np.array([b''] * size + [np.stack(plan).tobytes()], object)
    return [np.arange(size + 1), np.append(plan.ids, -1), draws, packed]


def _row_types() -> list[Any]:
    tf = tf_cpu()
    return [tf.int64, tf.int64, tf.float64, tf.string]


def named(values: list[Any], num_ops: int, data_shape: tuple[int | None, ...]) -> dict[str, Any]:
    """Names the columns of `rows_of` and the data, and sets their shapes."""
    tf = tf_cpu()
    names = ('slot', 'id', 'draws', 'plan', 'data')
    shapes: tuple[list[int | None], ...] = ([], [], [num_ops, PER_OP], [], list(data_shape))
    return {
        name: tf.ensure_shape(value, [None, *shape])
        for name, value, shape in zip(names, values, shapes, strict=True)
    }


def sequential(
    records: Any,
    local: int,
    seed: int,
    num_ops: int,
    failed: Callable[[Exception], None],
    repeats: int = 1,
) -> Any:
    """Rows of a data set of records that must be read in sequence.

    Args:
      records: a data set of (id, epoch, label, encoded bytes).
      local: rows of a batch on this host, b; the last batch is padded.
      seed: of the run.
      num_ops: how many ops draw random numbers.
      failed: told why, where the records cannot be read to their end; the rows end there.
      repeats: how many records of one example follow one another; a batch has them apart.

    Returns:
      As `indexed`, with data the encoded bytes.
    """
    tf = tf_cpu()

    def rows() -> Iterator[tuple[np.ndarray, ...]]:
        # In Python, because what fails inside the data set is skipped together with bad images.
        try:
            for batch in records.batch(local).prefetch(1).as_numpy_iterator():
                order = apart(len(batch[0]), repeats)
                ids, epochs, labels, data = (column[order] for column in batch)
                missing = local - len(ids)
                ids = np.pad(ids, (0, missing), constant_values=-1)
                epochs, labels = np.pad(epochs, (0, missing)), np.pad(labels, (0, missing))
                data = np.array([*data, *([b''] * (missing + 1))], object)
                yield (*rows_of(Plan(ids, epochs, labels), seed, num_ops), data)
        except tf.errors.OpError as e:
            failed(e)

    types = [*_row_types(), tf.string]
    shapes = [[], [], [num_ops, PER_OP], [], []]
    signature = tuple(
        tf.TensorSpec([None, *shape], kind) for kind, shape in zip(types, shapes, strict=True)
    )
    batches = tf.data.Dataset.from_generator(rows, output_signature=signature)
    return batches.map(lambda *values: named(list(values), num_ops, ())).unbatch()


def aligned(
    chunks: Iterator[dict[str, np.ndarray]], local: int
) -> Generator[tuple[Plan, np.ndarray, np.ndarray], None, None]:
    """Cuts a stream of rows, some of which dropped out, at its ticks.

    Args:
      chunks: batches of rows with slot, plan and image, of any lengths.
      local: rows of a batch, b.

    Yields:
      Of each batch: its plan, the slots that are there (int64 [m], ascending, m ≤ b) and their
      images [m, H, W, C].
    """
    held: dict[str, np.ndarray] | None = None
    for chunk in chunks:
        if held is not None and len(held['slot']):
            chunk = {k: np.concatenate([held[k], chunk[k]]) for k in chunk}
        held = chunk
        while (ticks := np.flatnonzero(held['slot'] == local)).size:
            end = ticks[0]
            plan = Plan(*np.frombuffer(held['plan'][end], np.int64).reshape(3, local))
            yield plan, held['slot'][:end], held['image'][:end]
            held = {k: v[end + 1 :] for k, v in held.items()}

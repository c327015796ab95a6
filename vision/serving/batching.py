"""Dynamic batching: items of many threads are prepared by threads and computed in batches by one."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

from vision.core.startup import available_cpus

Item = TypeVar('Item')
Ready = TypeVar('Ready')
Answer = TypeVar('Answer')


class Full(Exception):
    """Raised for an item that is not taken, because too many are in hand or the batcher is closed."""


class _Waiting(NamedTuple, Generic[Ready, Answer]):
    ready: Ready
    future: 'Future[Answer]'
    since: float  # seconds of `time.monotonic`


class Batcher(Generic[Item, Ready, Answer]):
    """Computes items of many callers in batches.

    A pool of threads prepares the items. One thread takes the prepared items in the order in which
    they are ready. It computes as many as are waiting, rounded down to a power of two, so that few
    shapes are compiled and no batch is padded. The rest is the beginning of the next batch.
    A batch waits for more items only while others are being prepared.

    An item whose preparation fails is not in a batch. If a batch fails, its items are computed one
    by one, so that only those fail that are the reason.
    """

    def __init__(
        self,
        prepare: Callable[[Item], Ready],
        compute: Callable[[list[Ready]], Sequence[Answer]],
        max_batch: int = 32,
        max_wait: float = 0.005,
        max_queue: int = 256,
        observe: Callable[[int], object] = lambda size: None,
        threads: int | None = None,
    ):
        """Starts the threads.

        Args:
          prepare: prepares one item; called by several threads at once.
          compute: returns the answers of n prepared items, in their order; called by one thread.
          max_batch: the largest n.
          max_wait: seconds that a prepared item waits for those that are being prepared.
          max_queue: the largest number of items in hand, from `submit` to their answers.
          observe: is told the size of each batch.
          threads: the number of threads that prepare; by default one for each CPU core.
        """
        self._prepare, self._compute, self._observe = prepare, compute, observe
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        # All below is read and changed while `_changed` is held.
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting[Ready, Answer]] = deque()
        self._preparing = self._in_hand = 0
        self._closed = False
        self._pool = ThreadPoolExecutor(threads or available_cpus(), 'prepare')
        self._thread = threading.Thread(target=self._run, name='compute', daemon=True)
        self._thread.start()

    @property
    def in_hand(self) -> int:
        """The number of items that have no answer yet."""
        return self._in_hand

    @property
    def full(self) -> bool:
        """True if `submit` would raise Full now."""
        return self._closed or self._in_hand >= self._max_queue

    def submit(self, item: Item) -> 'Future[Answer]':
        """Returns the future answer of an item; it has the exception if the item fails.

        Raises:
          Full: `max_queue` items are in hand, or `close` was called.
        """
        future: Future[Answer] = Future()
        with self._changed:
            if self.full:
                raise Full
            self._in_hand += 1
            self._preparing += 1
            self._pool.submit(self._prepare_one, item, future)
        return future

    def close(self) -> None:
        """Takes no more items, and returns when all that were submitted are answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._pool.shutdown()
        self._thread.join()

    def _prepare_one(self, item: Item, future: 'Future[Answer]') -> None:
        """Prepares an item, and puts it into the queue; runs in a thread of the pool."""
        made, error = None, None
        # Nobody waits for an item whose future was cancelled.
        wanted = future.set_running_or_notify_cancel()
        try:
            if wanted:
                made = _Waiting(self._prepare(item), future, time.monotonic())
        except BaseException as e:
            error = e
        with self._changed:
            self._preparing -= 1
            if made is None:
                self._in_hand -= 1
            else:
                self._waiting.append(made)
            self._changed.notify_all()
        if error is not None:
            future.set_exception(error)

    def _run(self) -> None:
        """Computes batches until `close` was called and nothing is left."""
        while batch := self._next():
            self._observe(len(batch))
            outcomes = self._outcomes([item.ready for item in batch])
            with self._changed:
                self._in_hand -= len(batch)
            for item, (answer, error) in zip(batch, outcomes, strict=True):
                if error is None:
                    item.future.set_result(answer)
                else:
                    item.future.set_exception(error)

    def _next(self) -> list[_Waiting[Ready, Answer]]:
        """Waits for the next batch; returns [] at the end."""
        with self._changed:
            while not self._waiting:
                if self._closed and not self._preparing:
                    return []
                self._changed.wait()
            # Wait for the items that are being prepared, but not longer than `max_wait`.
            end = self._waiting[0].since + self._max_wait
            while self._preparing and len(self._waiting) < self._max_batch:
                if (left := end - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            count = 1 << (min(len(self._waiting), self._max_batch).bit_length() - 1)
            return [self._waiting.popleft() for _ in range(count)]

    def _outcomes(self, ready: list[Ready]) -> list[tuple]:
        """Returns an answer or an exception, the other being None, for each prepared item."""
        try:
            answers = self._compute(ready)
            if len(answers) != len(ready):
                raise RuntimeError(f'{len(answers)} answers for {len(ready)} items')
            return [(answer, None) for answer in answers]
        except BaseException as e:
            if len(ready) == 1:
                return [(None, e)]
            return [self._outcomes([one])[0] for one in ready]

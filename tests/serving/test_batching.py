"""Laws of the batcher, with a fake model: order, isolation, a full queue, draining, no mix-up."""

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import pytest

from vision.serving.batching import Batcher, Full


def bad(item):
    if item == 'unreadable':
        raise ValueError('unreadable')
    return item


def model(items):
    if 'poison' in items:
        raise RuntimeError('poison')
    return [f'answer to {item}' for item in items]


def held(**options):
    """A batcher whose model waits for an event, its batches, and the event."""
    batches, go = [], threading.Event()

    def compute(items):
        batches.append(list(items))
        go.wait(10)
        return model(items)

    return Batcher(bad, compute, **options), batches, go


def until(happened):
    end = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_batches_are_in_order_and_of_sizes_that_are_powers_of_two():
    batcher, batches, go = held(max_batch=8, threads=1)
    futures = [batcher.submit(0)]
    until(lambda: batches)  # the model is busy with the first
    futures += [batcher.submit(i) for i in range(1, 24)]
    until(lambda: len(batcher._waiting) == 23)
    go.set()
    assert [f.result(10) for f in futures] == [f'answer to {i}' for i in range(24)]
    assert [len(b) for b in batches] == [1, 8, 8, 4, 2, 1]
    assert [i for batch in batches for i in batch] == list(range(24))
    batcher.close()


def test_an_item_alone_does_not_wait_and_others_wait_for_what_is_being_prepared():
    batcher = Batcher(bad, model, max_wait=5)
    began = time.monotonic()
    assert batcher.submit('a').result(10) == 'answer to a'
    assert time.monotonic() - began < 2
    batcher.close()
    sizes, slow = [], threading.Event()
    batcher = Batcher(
        lambda item: slow.wait(10) and item if item == 'slow' else item,
        model, max_wait=5, max_batch=2, threads=2, observe=sizes.append,
    )  # fmt: skip
    futures = [batcher.submit('slow'), batcher.submit('quick')]
    until(lambda: batcher._waiting)
    slow.set()
    assert [f.result(10) for f in futures] == ['answer to slow', 'answer to quick']
    assert sizes == [2]
    batcher.close()


def test_a_slow_preparation_does_not_hold_the_others_longer_than_max_wait():
    never = threading.Event()
    batcher = Batcher(lambda item: item or never.wait(10), model, max_wait=0.01, threads=2)
    stuck = batcher.submit(0)
    assert batcher.submit(1).result(5) == 'answer to 1' and not stuck.done()
    never.set()
    batcher.close()


def test_bad_items_fail_alone():
    batcher, batches, go = held(max_batch=8, threads=1)
    first = batcher.submit('first')
    until(lambda: batches)
    items = ['a', 'unreadable', 'b', 'poison', 'c']
    futures = [batcher.submit(item) for item in items]
    until(lambda: len(batcher._waiting) == 4)
    go.set()
    assert first.result(10) == 'answer to first'
    for item, future in zip(items, futures, strict=True):
        if item in ('unreadable', 'poison'):
            with pytest.raises((ValueError, RuntimeError), match=item):
                future.result(10)
        else:
            assert future.result(10) == f'answer to {item}'
    assert ['a', 'b', 'poison', 'c'] in batches
    batcher.close()
    assert batcher.in_hand == 0


def test_a_model_that_loses_an_answer_gives_none_to_another_item():
    batcher = Batcher(bad, lambda items: items[1:] or items, threads=1, max_wait=0)
    assert all(batcher.submit(i).result(10) == i for i in range(3))
    batcher.close()
    batcher = Batcher(bad, lambda items: [], threads=1)
    with pytest.raises(RuntimeError, match='0 answers for 1'):
        batcher.submit(1).result(10)
    batcher.close()


def test_a_full_queue_takes_nothing_and_takes_again_when_it_is_answered():
    batcher, _, go = held(max_queue=3)
    futures = [batcher.submit(i) for i in range(3)]
    assert batcher.full and batcher.in_hand == 3
    for _ in range(3):
        with pytest.raises(Full):
            batcher.submit('more')
    go.set()
    assert [f.result(10) for f in futures] == [f'answer to {i}' for i in range(3)]
    until(lambda: not batcher.full)
    assert batcher.submit('more').result(10) == 'answer to more'
    with pytest.raises(ValueError):
        batcher.submit('unreadable').result(10)
    until(lambda: batcher.in_hand == 0)
    batcher.close()


def test_closing_answers_what_is_in_hand_and_takes_no_more():
    batcher, batches, go = held(max_batch=4)
    futures = [batcher.submit(i) for i in range(11)]
    until(lambda: batches)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    until(lambda: batcher.full)
    with pytest.raises(Full):
        batcher.submit('late')
    go.set()
    closing.join(10)
    assert [f.result(0) for f in futures] == [f'answer to {i}' for i in range(11)]
    assert batcher.in_hand == 0


def test_whoever_leaves_does_not_hold_a_place():
    gate = threading.Event()
    batcher = Batcher(lambda item: gate.wait(10) and item, model, max_queue=2, threads=1)
    stays, leaves = batcher.submit('stays'), batcher.submit('leaves')
    assert leaves.cancel()
    gate.set()
    assert stays.result(10) == 'answer to stays'
    with pytest.raises(CancelledError):
        leaves.result(0)
    until(lambda: batcher.in_hand == 0)
    batcher.close()


def test_every_client_gets_its_own_answer():
    sizes = []
    batcher = Batcher(bad, model, max_batch=16, max_wait=0.001, observe=sizes.append, threads=4)

    def client(number):
        for i in range(50):
            item = 'unreadable' if (number + i) % 7 == 0 else f'{number}/{i}'
            try:
                assert batcher.submit(item).result(10) == f'answer to {item}'
                assert item != 'unreadable'
            except ValueError:
                assert item == 'unreadable'
        return True

    with ThreadPoolExecutor(16) as clients:
        done, _ = wait([clients.submit(client, n) for n in range(16)], 30)
    assert [f.result() for f in done] == [True] * 16
    assert max(sizes) > 1 and all(size & (size - 1) == 0 for size in sizes)
    batcher.close()

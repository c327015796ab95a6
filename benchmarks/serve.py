"""Load test of the server: throughput, latency, and whether each client gets its own answer."""

import http.client
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.input import make_jpegs
from vision.core.errors import UserError
from vision.core.startup import available_cpus
from vision.data.source import FileSource
from vision.prediction.classifier import Classifier

_CLASSES = 5  # of an answer that are compared
_TOLERANCE = 1e-4  # of a probability, between batches of different sizes
_BOUNDARY = 'vision-load-test'

# The probabilities of an image's classes, by their names.
Expected = dict[str, float]


def serve_speed(
    pretrained: str, seconds: float, clients: Sequence[int] = (1, 8, 32), images: int = 400
) -> dict[str, Any]:
    """Measures a server by clients that send one photo after the other, on the same machine.

    The photos are 500×375 JPEGs, each with its own answer, which was computed before by `predict`.
    A client keeps its connection.

    Args:
      pretrained: the weights, see `Classifier.from_pretrained`.
      seconds: the time of the largest number of clients; the others take a third.
      clients: numbers of clients at once.
      images: the number of photos.

    Returns:
      `predict`: images/s of `Classifier.classify_source` on the same files, the mean of a pass
      before and one after. Rows `clients`: `clients`, `requests`, `rate` (images/s), `of_predict`,
      `p50_ms` and `p99_ms`; `lost`, the requests without an answer, `wrong`, those with the answer
      for another photo, and `refused`, those with another status than 200.

    Raises:
      UserError: the weights cannot be read, or two photos have the same answer.
    """
    classifier = Classifier.from_pretrained(pretrained)
    with tempfile.TemporaryDirectory() as folder:
        source = make_jpegs(Path(folder), images)
        expected = _answers(classifier, source)
        before = _rate(classifier, source)
        bodies = [_body(Path(path).read_bytes()) for path in source.paths]
        with _server(pretrained) as port:
            rows = [
                _measure(
                    port,
                    bodies,
                    expected,
                    number,
                    seconds if number == max(clients) else seconds / 3,
                )
                for number in clients
            ]
        predict = statistics.mean([before, _rate(classifier, source)])
    return {
        'model': pretrained,
        'cores': available_cpus(),
        'predict': predict,
        'clients': [{**row, 'of_predict': row['rate'] / predict} for row in rows],
    }


def _answers(classifier: Classifier, source: FileSource) -> list[Expected]:
    """Returns the right answer for each photo; raises UserError if two are the same."""
    found = list(classifier.classify_source(source, _CLASSES))
    answers = [{p['class']: p['probability'] for p in f['predictions']} for f in found]
    for i, one in enumerate(answers):
        if any(_is_same(one, other) for other in answers[:i]):
            raise UserError(f'two photos have the same answer {one}; choose other weights')
    return answers


def _is_same(one: Expected, other: Expected) -> bool:
    """Compares two answers; the last of the classes may differ where two are equally probable."""
    values = zip(sorted(one.values()), sorted(other.values()), strict=True)
    close = all(abs(a - b) <= _TOLERANCE for a, b in values)
    return close and all(abs(one[k] - other[k]) <= _TOLERANCE for k in one.keys() & other.keys())


def _rate(classifier: Classifier, source: FileSource) -> float:
    """Returns the images/s of `predict`."""
    begin = time.perf_counter()
    return sum(1 for _ in classifier.classify_source(source)) / (time.perf_counter() - begin)


def _body(data: bytes) -> bytes:
    """Returns a multipart body with a file."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="x.jpg"\r\n\r\n'
    return head.encode() + data + f'\r\n--{_BOUNDARY}--\r\n'.encode()


@contextmanager
def _server(pretrained: str) -> Iterator[int]:
    """Starts a server process; yields its port."""
    words = [sys.executable, '-m', 'experiments.serve', f'--pretrained={pretrained}', '--port=0']
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if not (address := process.stdout.readline().strip()):
            raise UserError('the server did not start')
        yield int(address.rpartition(':')[2])
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _measure(
    port: int, bodies: Sequence[bytes], expected: Sequence[Expected], clients: int, seconds: float
) -> dict[str, Any]:
    """Lets clients send photos for some seconds; returns a row of `serve_speed`."""
    times, outcomes = list[float](), list[str]()
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
        # The clients begin at different photos.
        first = number * len(bodies) // clients
        for i in itertools.count(first):
            photo, begin = i % len(bodies), time.perf_counter()
            if i > first and begin >= end:
                break
            outcome = _ask(connection, bodies[photo], expected[photo])
            times.append(time.perf_counter() - begin)
            outcomes.append(outcome)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The last answers come after the end.
    rate = outcomes.count('right') / (time.perf_counter() - begin)
    return {
        'clients': clients,
        'requests': len(outcomes),
        'rate': rate,
        'p50_ms': 1000 * float(np.percentile(times, 50)),
        'p99_ms': 1000 * float(np.percentile(times, 99)),
        **{name: outcomes.count(name) for name in ('lost', 'wrong', 'refused')},
    }


def _ask(connection: http.client.HTTPConnection, body: bytes, expected: Expected) -> str:
    """Sends a photo; returns 'right', 'wrong', 'refused' or 'lost'."""
    kind = {'Content-Type': f'multipart/form-data; boundary={_BOUNDARY}'}
    try:
        connection.request('POST', '/classify', body, kind)
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        return 'lost'
    if answer.status != 200:
        return 'refused'
    got = {p['class']: p['probability'] for p in json.loads(text)['predictions']}
    return 'right' if _is_same(got, expected) else 'wrong'

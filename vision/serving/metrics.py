"""Counters and histograms of a server, in the text format of Prometheus.

https://prometheus.io/docs/instrumenting/exposition_formats
"""

import bisect
import threading
from collections.abc import Iterator

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class _Histogram:
    """Counts values by upper limits; the last bucket has no limit."""

    def __init__(self, limits: tuple[float, ...]):
        self._limits = limits
        self._counts = [0] * (len(limits) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._limits, value)] += 1
        self._sum += value

    def lines(self, name: str, label: str = '') -> Iterator[str]:
        """Yields the cumulative counts, the sum and the count."""
        total, comma = 0, ',' if label else ''
        for limit, count in zip([*map('{:g}'.format, self._limits), '+Inf'], self._counts):
            total += count
            yield f'{name}_bucket{{{label}{comma}le="{limit}"}} {total}'
        labels = f'{{{label}}}' if label else ''
        yield f'{name}_sum{labels} {self._sum:.6f}'
        yield f'{name}_count{labels} {total}'


class Metrics:
    """Requests by route and status, seconds by route, and sizes of batches; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, int], int] = {}
        self._seconds: dict[str, _Histogram] = {}
        self._sizes = _Histogram(_SIZES)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts a request; `route` must be one of a few names, not any path of a client."""
        with self._lock:
            self._requests[route, status] = self._requests.get((route, status), 0) + 1
            self._seconds.setdefault(route, _Histogram(_SECONDS)).add(seconds)

    def computed(self, size: int) -> None:
        """Counts a batch."""
        with self._lock:
            self._sizes.add(size)

    def text(self, queue_length: int) -> str:
        """Returns all figures; `queue_length` is the number of images without an answer."""
        with self._lock:
            return '\n'.join([*self._lines(queue_length), ''])

    def _lines(self, queue_length: int) -> Iterator[str]:
        yield '# HELP vision_requests_total Requests by route and status.'
        yield '# TYPE vision_requests_total counter'
        for (route, status), count in sorted(self._requests.items()):
            yield f'vision_requests_total{{route="{route}",status="{status}"}} {count}'
        yield '# HELP vision_request_seconds Time from a request to its answer.'
        yield '# TYPE vision_request_seconds histogram'
        for route, seconds in sorted(self._seconds.items()):
            yield from seconds.lines('vision_request_seconds', f'route="{route}"')
        yield '# HELP vision_queue_length Images that have no answer yet.'
        yield '# TYPE vision_queue_length gauge'
        yield f'vision_queue_length {queue_length}'
        yield '# HELP vision_batch_size Images that the model computes at once.'
        yield '# TYPE vision_batch_size histogram'
        yield from self._sizes.lines('vision_batch_size')

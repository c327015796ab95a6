"""Description of images: feature vectors, hashes and file properties, with one decode per image."""

import contextlib
import hashlib
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from vision.core.errors import UserError, not_installed
from vision.core.startup import available_cpus
from vision.data.source import BadImage, Image, Source, label_text, read_each
from vision.prediction.classifier import Classifier
from vision.preprocess.graph import decoded
from vision.search import descriptors

_AHEAD = 64  # images that are read ahead of the model, in addition to a batch
_HASHED = 256  # least number of pixels of the shorter side after averaging, before hashing
_NOT_FINITE = "the model's features are not finite"


class Named(NamedTuple):
    """A source with names for its images: paths as given, or 'SPLIT:ID' of a run's data."""

    source: Source
    names: Sequence[str]


class Box(NamedTuple):
    """A part of a picture, in pixels of the upright picture from its top left corner."""

    x: int
    y: int
    width: int
    height: int

    def cut(self, pixels: np.ndarray, name: str) -> np.ndarray:
        """Returns the part of an image, uint8 [H, W, C].

        Raises:
          UserError: the box is empty, or not within the image.
        """
        height, width = pixels.shape[:2]
        right, bottom = self.x + self.width, self.y + self.height
        if not (0 <= self.x < right <= width and 0 <= self.y < bottom <= height):
            raise UserError(
                f'--box={",".join(map(str, self))} is not within {name}, which has '
                f'{width} x {height} pixels'
            )
        return pixels[self.y : bottom, self.x : right]


def full_name(images: Named, position: int) -> str:
    """Returns the name of an image in an index: the absolute path of a file, or 'SPLIT:ID'."""
    name = images.names[position]
    return name if images.source.paths is None else os.path.abspath(name)


class Described(NamedTuple):
    """Description of an image, without its vector.

    Attributes:
      path: absolute path of the file, or 'SPLIT:ID'.
      label: name of its class in a split, or of the folder that the file is in; '' if unknown.
      size: bytes of the file; None for pixels.
      modified: modification time of the file in microseconds since 1970, or None.
      width: width of the upright image in pixels; None if it cannot be read.
      height: as `width`.
      sha256: hash of the file's bytes, or of the pixels and their shape; None if not requested.
      phash: `imagehash.phash` as 16 hexadecimal digits; None if not requested.
      error: the reason why the image has no vector; None if it has one.
    """

    path: str
    label: str = ''
    size: int | None = None
    modified: int | None = None
    width: int | None = None
    height: int | None = None
    sha256: bytes | None = None
    phash: str | None = None
    error: str | None = None


def describe_images(
    classifier: Classifier,
    images: Named,
    endpoint: str = 'features',
    hashes: bool = False,
    ids: Sequence[int] | np.ndarray | None = None,
    box: Box | None = None,
    views: str = 'one',
) -> Iterator[tuple[list[Described], np.ndarray]]:
    """Describes images batch by batch. Threads read and decode each file once, ahead of the model.

    Memory does not grow with the number of images. Large photos take memory only while a thread
    decodes them.

    Args:
      classifier: computes the vectors.
      images: the images.
      endpoint: see `Classifier.embed`.
      hashes: compute `sha256` and `phash`, too.
      ids: the positions of the images to describe; all by default. A source without random access
        needs the default.
      box: the part of each image that the vector describes; the whole image by default.
      views: the views of an image whose vectors are averaged, see `descriptors.views`.

    Yields:
      Descriptions of n images, in the order of the ids, and their vectors, float32 [n, D]. The
      vector of an image with an `error` is zero.

    Raises:
      UserError: the box is not within an image.
    """
    look, each = _Look(classifier, images, hashes, box, views), descriptors.number_of_views(views)
    # Queue the descriptions of images whose vectors the model is still computing.
    count = images.source.num_examples if ids is None else len(ids)
    waiting: deque[Described] = deque()

    def prepared() -> Iterator[np.ndarray | None]:
        for known, shown in _in_threads(look, images.source, ids):
            waiting.append(known)
            yield from shown or itertools.repeat(None, each)

    batches = classifier.embed_prepared(prepared(), count * each, endpoint)
    for vectors in (some.mean(axis=1) for some in descriptors.grouped(batches, each)):
        known = [waiting.popleft() for _ in vectors]
        # A vector that is not finite would spoil an index.
        finite = np.isfinite(vectors).all(axis=1)
        known = [
            about if about.error or good else about._replace(error=_NOT_FINITE)
            for about, good in zip(known, finite, strict=True)
        ]
        there = np.array([about.error is None for about in known])
        yield known, np.where(there[:, None], vectors, 0).astype(np.float32)


class _Look:
    """Reads, decodes and preprocesses one image, and records the properties of its file."""

    def __init__(
        self, classifier: Classifier, images: Named, hashes: bool, box: Box | None, views: str
    ):
        self._classifier, self._images, self._box = classifier, images, box
        self._views = descriptors.views(views)
        self._hash = perceptual_hash() if hashes else None

    def __call__(
        self, position: int, image: Image | BadImage | None = None, label: Any = None
    ) -> tuple[Described, list[np.ndarray]]:
        """Returns the description and the preprocessed views, none if it cannot be read.

        Args:
          position: id of the image in the source.
          image: the image, if the source was read already.
          label: its label, if the source was read already.
        """
        source, name = self._images.source, self._images.names[position]
        known = Described(name)
        if source.paths is not None:
            path = os.path.abspath(name)
            known = known._replace(path=path, label=os.path.basename(os.path.dirname(path)))
            # Read the modification time first: a file that changes later is then described again.
            with contextlib.suppress(OSError, ValueError):
                about = os.stat(source.paths[position])
                known = known._replace(size=about.st_size, modified=about.st_mtime_ns // 1000)
        try:
            if image is None:
                (image,), (label,) = read_each(source, [position])
            if source.class_names:
                known = known._replace(label=label_text(source.class_names, label))
            if isinstance(image, BadImage):
                raise image
            pixels = decoded(image, self._classifier.channels)
            height, width = pixels.shape[:2]
            known = known._replace(width=width, height=height)
            if self._hash is not None:
                known = known._replace(sha256=digest(image), phash=self._hash(pixels))
            if self._box is not None:
                pixels = self._box.cut(pixels, name)
            return known, [
                self._classifier.prepare(np.ascontiguousarray(view)) for view in self._views(pixels)
            ]
        except BadImage as e:
            return known._replace(error=str(e)), []
        except ValueError as e:
            return known._replace(error=f'the preprocessing fails: {e}'), []


def _in_threads(
    look: _Look, source: Source, ids: Sequence[int] | np.ndarray | None
) -> Iterator[tuple[Described, list[np.ndarray]]]:
    """Yields the results of `look` in order, while threads compute the next ones."""
    tasks: Iterable[tuple]
    if source.indexed:
        tasks = ((int(i),) for i in (range(source.num_examples) if ids is None else ids))
    else:
        chunks = source.stream()
        tasks = ((int(i), x, y) for chunk in chunks for i, x, y in zip(*chunk, strict=True))
    # Keep up to `_AHEAD` tasks running, and cancel them if the caller stops.
    running: deque[Future] = deque()
    with ThreadPoolExecutor(available_cpus()) as threads:
        try:
            for task in tasks:
                running.append(threads.submit(look, *task))
                if len(running) > _AHEAD:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def digest(image: Image) -> bytes:
    """Returns the SHA-256 digest of a file's bytes, or of pixels and their shape."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()


def perceptual_hash() -> Any:
    """Returns a function from uint8 [H, W, C] to `imagehash.phash`, as 16 hexadecimal digits.

    An image whose shorter side has 512 pixels or more is first averaged over squares of pixels, so
    that the side keeps 256 pixels or more. This can change a bit of the hash.

    Raises:
      UserError: imagehash is not installed.
    """
    library = imagehash()
    from PIL import Image

    def phash(pixels: np.ndarray) -> str:
        grey = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert('L')
        # The resampling to 32 pixels would take as long as decoding a large photo.
        return str(library.phash(grey.reduce(max(1, min(grey.size) // _HASHED))))

    return phash


def imagehash() -> Any:
    """Imports and returns imagehash.

    Raises:
      UserError: it is not installed.
    """
    try:
        import imagehash
    except ImportError:
        raise not_installed('search', 'imagehash', 'search') from None
    return imagehash

"""Detection of copies of a photo: hashes, vectors, thumbnails and local features in stages.

`CopyDetector` finds the copies of a new photo in a collection, with a comparable score for each;
`find_duplicates` (`duplicates.py`) uses the same stages within a collection.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vision.core.errors import UserError
from vision.prediction import pictures
from vision.preprocess.pictures import to_rgb
from vision.search.descriptions import imagehash
from vision.search.local_features import LocalFeatures, Match, local_features, match

_HASH_SIDE = 32  # pixels of the square that `imagehash.phash` transforms
_SHADE = 3  # of 255: the largest difference in colour between equal blank images
_TEXTURED = 100  # local features of images that local features can compare
_HALF = 20  # strength of a match whose score is in the middle of those of verified copies
_CACHED = 2000  # images whose local features (up to 120 kB each) are kept


@dataclasses.dataclass(frozen=True)
class Limits:
    """Thresholds of the stages.

    Attributes:
      bits: the most bits that perceptual hashes of candidates differ by, of 64; 0 … 11, or −1 for
        no candidates by hashes.
      neighbours: number of nearest images by their vectors that are candidates.
      cosine: the least cosine of two images that are copies if their thumbnails are the same.
      inliers: the least number of matched points of a copy, times the square of their agreement
        (`Match.strength`); 0 compares no local features.
      agreement: the least fraction of the shared part of a copy where the pixels agree.
    """

    bits: int = 8
    neighbours: int = 10
    cosine: float = 0.95
    inliers: int = 5
    agreement: float = 0.5

    def __post_init__(self) -> None:
        if not -1 <= self.cosine <= 1:
            raise UserError(
                f'threshold={self.cosine} is not a cosine: use a number from -1 to 1, such as 0.95'
            )
        if not -1 <= self.bits <= 11:
            raise UserError(f'bits={self.bits}: use a number from 0 to 11, or -1 for no hashes')
        if self.neighbours < 0:
            raise UserError(f'neighbours={self.neighbours}: use a number of images from 0')
        if self.inliers and self.inliers < 4:
            raise UserError(f'inliers={self.inliers}: use a number of points from 4, or 0 for none')
        if not 0 <= self.agreement <= 1:
            raise UserError(f'agreement={self.agreement}: use a fraction from 0 to 1')

    def verify(self, found: Match | None) -> bool:
        """Decides if matched local features show that two images are copies."""
        return (
            found is not None
            and found.strength >= self.inliers
            and found.agreement >= self.agreement
        )


DEFAULT = Limits()


class Evidence(NamedTuple):
    """Comparison of two images.

    Attributes:
      stage: what shows that they are copies: 'bytes', 'features' (local features), 'thumbnail', or
        'vectors' where the pixels are not at hand; '' if nothing does.
      score: 1 for the same bytes. For copies by local features ½ + ½ s / (s + 20), where s is the
        strength of the match (`Match.strength`); for thumbnails and vectors 0.8. For no copies at most
        ½: ½ (0.9 cosine + 0.1 (1 − bits / 64)), negative cosines counting as 0.
      cosine: of the vectors, the highest if the query has several; −1 if it is not known.
      bits: the least number of bits that the hashes differ by over the eight turns and reflections
        of one image; 64 if it is not known.
      match: the matched local features, also too few of them; None if there are none.
    """

    stage: str
    score: float
    cosine: float
    bits: int
    match: Match | None = None

    @classmethod
    def of(
        cls, stage: str, cosine: float = -1.0, bits: int = 64, match: Match | None = None
    ) -> 'Evidence':
        """Makes evidence with its score."""
        if stage == 'features':
            assert match is not None
            score = 0.5 + 0.5 * match.strength / (match.strength + _HALF)
        elif stage:
            score = 1.0 if stage == 'bytes' else 0.8
        else:
            score = 0.5 * (0.9 * min(max(cosine, 0.0), 1.0) + 0.1 * (1 - bits / 64))
        return cls(stage, score, cosine, bits, match)


class Found(NamedTuple):
    """A candidate of a query.

    Attributes:
      position: the image's position in the collection.
      evidence: comparison with the query; `evidence.score` ranks all candidates of all queries.
    """

    position: int
    evidence: Evidence


class Look(NamedTuple):
    """Hashes, thumbnail, colour and size, which are compared before the local features.

    Attributes:
      hashes: `imagehash.phash` of the image in its eight turns and reflections, uint64 [8]; the
        first is the image's own.
      thumbnail: grey 16 × 16 pixels, centred, as a unit vector [256]; 0 if the image is blank.
      colour: mean colour [3].
      size: width and height.
    """

    hashes: np.ndarray
    thumbnail: np.ndarray
    colour: np.ndarray
    size: tuple[int, int]


class CopyDetector:
    """Finds the images of a collection that an image is a copy of, whole or in part.

    Candidates come from the vectors and the perceptual hashes. Each is then compared by thumbnails
    and local features. What was computed of the collection's images is kept for later queries::

        detector = CopyDetector(image_of, index.search)
        for position, evidence in detector(photo, classifier.embed([photo, photo[:, ::-1]])):
            print(index.name(position), evidence.score, evidence.stage)
    """

    def __init__(
        self,
        image_of: Callable[[int], np.ndarray | None],
        search: Callable[[np.ndarray, int], Sequence[Sequence[tuple[int, float]]]],
        hashes: np.ndarray | None = None,
        limits: Limits = DEFAULT,
    ):
        """Prepares the detection in a collection.

        Args:
          image_of: returns the image at a position, uint8 [H, W, C], or None if it cannot be read.
          search: returns for vectors [V, D] and k the k nearest images as (position, cosine), such
            as `Index.search`.
          hashes: `imagehash.phash` of the N images, uint64 [N]; see `hash_of`. By default there are
            no candidates by hashes.
          limits: thresholds.

        Raises:
          UserError: OpenCV or imagehash is not installed.
        """
        self._search, self._hashes, self._limits = search, hashes, limits
        self._compare = Comparison(image_of, limits)

    def __call__(
        self, image: np.ndarray, vectors: np.ndarray, candidates: Sequence[int] = ()
    ) -> list[Found]:
        """Compares an image with its candidates in the collection.

        Args:
          image: uint8 [H, W, C].
          vectors: the image's vector, or those of V versions of it, such as the mirrored image,
            float32 [V, D]; [0, D] for no candidates by vectors.
          candidates: more positions to compare.

        Returns:
          Each candidate once, the highest score first.
        """
        # Collect the candidates: nearest vectors, then nearest hashes.
        cosines, bits = dict.fromkeys(candidates, -1.0), dict[int, int]()
        if self._limits.neighbours and len(vectors):
            for row in self._search(vectors, self._limits.neighbours):
                for position, score in row:
                    cosines[position] = max(score, cosines.get(position, -1.0))
        known = look(image)
        if self._hashes is not None and self._limits.bits >= 0:
            least = np.bitwise_count(known.hashes[:, None] ^ self._hashes).min(axis=0)
            near = np.flatnonzero(least <= self._limits.bits)
            bits = dict(zip(near.tolist(), least[near].tolist(), strict=True))
        own = _Own(known, local_features(image) if self._limits.inliers else None)
        found = [
            Found(i, self._compare.with_new(own, i, cosines.get(i, -1.0), bits.get(i)))
            for i in cosines | bits
        ]
        return sorted(found, key=lambda f: -f.evidence.score)


class _Own(NamedTuple):
    """A query's look and local features."""

    look: Look
    local: LocalFeatures | None


class Comparison:
    """Compares pairs of images by thumbnails and local features, which are computed once."""

    def __init__(self, image_of: Callable[[Any], np.ndarray | None], limits: Limits = DEFAULT):
        """Takes a function that returns an image, uint8 [H, W, C], or None, and thresholds."""
        self._image_of, self._limits = image_of, limits
        self._known = functools.lru_cache(_CACHED)(self._compute)
        self._looks = dict[Hashable, Look | None]()

    def learn(self, key: Hashable, image: np.ndarray | None) -> Look | None:
        """Computes and keeps the look of an image that was read for another reason."""
        self._looks[key] = None if image is None else look(image)
        return self._looks[key]

    def look(self, key: Hashable) -> Look | None:
        """Returns the look of an image; None if it cannot be read."""
        if key not in self._looks:
            self.learn(key, self._image_of(key))
        return self._looks[key]

    def __call__(
        self, one: Hashable, other: Hashable, cosine: float = -1, bits: int | None = None
    ) -> Evidence:
        """Compares two images; an image that cannot be read is a copy of none.

        Args:
          one: what the function of images takes.
          other: as `one`.
          cosine: of their vectors.
          bits: distance of their hashes, if it is known.
        """
        known = self.look(one)
        if known is None:
            return Evidence.of('', cosine, 64)
        local = self._known(one) if self._limits.inliers else None
        return self.with_new(_Own(known, local), other, cosine, bits)

    def with_new(
        self, own: _Own, other: Hashable, cosine: float = -1, bits: int | None = None
    ) -> Evidence:
        """Compares a query with an image of the collection; see `__call__`."""
        known = self.look(other)
        if known is None:
            return Evidence.of('', cosine, 64 if bits is None else bits)
        if bits is None:
            bits = int(np.bitwise_count(own.look.hashes ^ known.hashes[0]).min())
        alike = cosine >= self._limits.cosine and same_look(own.look, known)
        local = self._known(other) if self._limits.inliers else None
        if own.local is None or local is None:
            return Evidence.of('thumbnail' if alike else '', cosine, bits)
        # Local features decide, unless one of the images has few of them.
        found = match(own.local, local)
        few = min(len(own.local.points), len(local.points)) < _TEXTURED
        good = self._limits.verify(found)
        stage = 'features' if good else 'thumbnail' if alike and few else ''
        return Evidence.of(stage, cosine, bits, found)

    def _compute(self, key: Hashable) -> LocalFeatures | None:
        image = self._image_of(key)
        return None if image is None else local_features(image)


def look(image: np.ndarray) -> Look:
    """Computes the hashes, the thumbnail and the colour of an image, uint8 [H, W, C].

    Raises:
      UserError: imagehash is not installed.
    """
    from PIL import Image

    small = Image.fromarray(to_rgb(image)).resize((pictures.SIDE,) * 2, Image.Resampling.BOX)
    colour, (height, width) = np.asarray(small).mean(axis=(0, 1)), image.shape[:2]
    return Look(_hashes(image), pictures.contrast(image), colour, (width, height))


def same_look(one: Look, other: Look) -> bool:
    """Decides if two images look the same: by their thumbnails, or if blank by their colours."""
    blank = [not x.thumbnail.any() for x in (one, other)]
    if any(blank):
        return all(blank) and float(np.abs(one.colour - other.colour).max()) <= _SHADE
    return float(one.thumbnail @ other.thumbnail) >= pictures.CORRELATION


def hash_of(image: np.ndarray) -> int:
    """Returns the perceptual hash of an image, uint8 [H, W, C], as the detection compares it."""
    return int(look(image).hashes[0])


def _hashes(image: np.ndarray) -> np.ndarray:
    """Returns `imagehash.phash` of the turns and reflections of an image, uint64 [8]."""
    from PIL import Image

    grey = Image.fromarray(to_rgb(image)).convert('L')
    # Reduce by averaging first, which is much faster for a large photo.
    grey = grey.reduce(max(1, min(grey.size) // (8 * _HASH_SIDE)))
    square = grey.resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.LANCZOS)
    turned = [square, *(square.transpose(turn) for turn in Image.Transpose)]
    return np.array([int(str(imagehash().phash(one)), 16) for one in turned], np.uint64)

"""Local features of photos, and the verification that one photo shows a part of another.

Features are SIFT (Lowe 2004, "Distinctive image features from scale-invariant keypoints") in the
form of RootSIFT (Arandjelović and Zisserman 2012, "Three things everyone should know to improve
object retrieval"). Matched points must agree on one affine map, which RANSAC finds (Fischler and
Bolles 1981), and the pixels below that map must agree, too.
"""

from typing import Any, NamedTuple

import numpy as np

from vision.core.errors import not_installed
from vision.preprocess.pictures import to_rgb

SIDE = 384  # pixels of the longer side at which features are computed
_COUNT = 500  # features of an image, those with the most contrast
_CONTRAST = 0.02  # the least contrast of a feature; half of Lowe's, for dark and pale copies
_SMALLEST = 24  # pixels: shorter sides have no features
_RATIO = 0.8  # the largest distance of a match, as a fraction of the distance to the next feature
_FEWEST = 4  # matches that determine an affine map, and one more
_ERROR = 5.0  # pixels: the largest distance of an inlier from its place
_TRIALS = 2000  # samples of RANSAC
# The scales that an affine map of a copy may have, and the largest quotient of its two scales.
_SCALES, _ASPECT = (0.05, 20.0), 2.5
# The pixels are compared at a longer side of `_SMALL`, blurred by `_BLUR` against noise, in windows
# of `_WINDOW`: windows with a standard deviation of less than `_FLAT` in both are left out, those
# with a correlation above `_ALIKE` agree.
_SMALL, _BLUR, _WINDOW, _FLAT, _ALIKE = 192, 1.5, 13, 4.0, 0.4
# SIFT's 4 × 4 histograms of 8 directions, as a mirrored image has them: the rows across the
# direction of the feature, and the directions, are reversed.
_MIRROR = np.arange(128).reshape(4, 4, 8)[::-1][:, :, -np.arange(8) % 8].ravel()


class LocalFeatures(NamedTuple):
    """Local features of an image.

    Attributes:
      points: their places (x, y) in pixels of the reduced image, float32 [N, 2].
      vectors: SIFT, uint8 [N, 128].
      scale: pixels of the reduced image per pixel of the image.
      size: (width, height) of the image.
      grey: the image in grey, uint8, whose longer side has at most 192 pixels, and blurred.
    """

    points: np.ndarray
    vectors: np.ndarray
    scale: float
    size: tuple[int, int]
    grey: np.ndarray


class Match(NamedTuple):
    """Geometric relation of two images, one of which shows a part of the other.

    Attributes:
      inliers: number of matched points that agree on the map.
      agreement: fraction of the shared part, without blank places, where the pixels agree.
      map: affine map from pixels of the one image to pixels of the other, float64 [2, 3].
      one: matched points (x, y) in the one image, float64 [inliers, 2].
      other: the same points in the other image.
      shared: fraction of the area of the one, and of the other, that both show.
    """

    inliers: int
    agreement: float
    map: np.ndarray
    one: np.ndarray
    other: np.ndarray
    shared: tuple[float, float]

    @property
    def strength(self) -> float:
        """The number of inliers times the square of the agreement.

        Of different photos, few matched points lie on parts that agree; of pictures with the same
        frame or watermark, many points do, but most of the rest disagrees.
        """
        return self.inliers * self.agreement**2


def opencv() -> Any:
    """Imports and returns OpenCV.

    Raises:
      UserError: it is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise not_installed('finding copies', 'OpenCV', 'search') from None
    return cv2


def local_features(image: np.ndarray) -> LocalFeatures:
    """Computes the local features of an image, uint8 [H, W, C], reduced to 384 pixels.

    An image without texture, or of less than 24 pixels, has none.

    Raises:
      UserError: OpenCV is not installed.
    """
    cv2 = opencv()
    height, width = image.shape[:2]
    grey = cv2.cvtColor(np.ascontiguousarray(to_rgb(image)), cv2.COLOR_RGB2GRAY)
    scale = min(1.0, SIDE / max(height, width))
    grey = _reduced(grey, scale)
    points = np.zeros((0, 2), np.float32)
    vectors = np.zeros((0, 128), np.uint8)
    if min(grey.shape) >= _SMALLEST:
        found, sift = cv2.SIFT_create(_COUNT, contrastThreshold=_CONTRAST).detectAndCompute(
            grey, None
        )
        if found:
            # OpenCV may keep more features if several have the same contrast.
            points = np.array([p.pt for p in found[:_COUNT]], np.float32)
            vectors = sift[:_COUNT].astype(np.uint8)
    small = _reduced(grey, min(1.0, _SMALL / max(grey.shape)))
    small = cv2.GaussianBlur(small, (0, 0), _BLUR)
    return LocalFeatures(points, vectors, scale, (width, height), small)


def match(one: LocalFeatures, other: LocalFeatures, fewest: int = _FEWEST) -> Match | None:
    """Matches two images by their local features, also if one of them is mirrored.

    Args:
      one: features of the one image.
      other: features of the other image.
      fewest: the least number of inliers.

    Returns:
      The match with the most inliers, or None if no map has `fewest` of them.
    """
    fewest, best = max(fewest, _FEWEST), None
    if min(len(one.points), len(other.points)) < fewest:
        return None
    # A mirrored image has the same features, each with its histograms in another order.
    b = _root(other.vectors)
    for mirrored in (False, True):
        rows, columns = _nearest(_root(one.vectors[:, _MIRROR] if mirrored else one.vectors), b)
        if len(rows) < fewest:
            continue
        found = _fit(one.points[rows], other.points[columns], mirrored)
        if found is not None and found[1].sum() >= max(fewest, best[1].sum() if best else 0):
            best = (*found, rows, columns)
    if best is None:
        return None
    affine, inlier, rows, columns = best
    return _relation(one, other, affine, rows[inlier], columns[inlier])


def _relation(
    one: LocalFeatures, other: LocalFeatures, affine: np.ndarray, rows: Any, columns: Any
) -> Match | None:
    """Returns the match of two images by an affine map of their reduced pixels."""
    whole = _scaled(affine, 1 / one.scale, 1 / other.scale)
    area, _ = shared_part(whole, one.size, other.size)
    sizes = [float(w * h) for w, h in (one.size, other.size)]
    scale = float(abs(np.linalg.det(whole[:, :2])))
    shared = min(1.0, area / scale / sizes[0]), min(1.0, area / sizes[1])
    return Match(
        len(rows),
        _agreement(one, other, affine),
        whole,
        one.points[rows].astype(np.float64) / one.scale,
        other.points[columns].astype(np.float64) / other.scale,
        shared,
    )


def shared_part(
    affine: np.ndarray, one: tuple[int, int], other: tuple[int, int]
) -> tuple[float, np.ndarray]:
    """Computes the part of an image that another shows, too.

    Args:
      affine: map from pixels of the one image to pixels of the other, float64 [2, 3].
      one: (width, height) of the one image.
      other: (width, height) of the other.

    Returns:
      The area of the part in the other image, and its corners (x, y) there, float64 [n, 2].
    """
    # Clip the outline of the one image, as the other shows it, by the outline of the other.
    outlines = [np.array([(0, 0), (w, 0), (w, h), (0, h)], np.float64) for w, h in (one, other)]
    moved = outlines[0] @ affine[:, :2].T + affine[:, 2]
    area, corners = opencv().intersectConvexConvex(
        moved.astype(np.float32), outlines[1].astype(np.float32)
    )
    return area, np.zeros((0, 2)) if corners is None else corners.reshape(-1, 2).astype(np.float64)


def _nearest(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of unit vectors that are each other's nearest, by far (Lowe's ratio)."""
    cosines = one @ other.T
    best = cosines.argmax(axis=1)
    rows = np.arange(len(one))
    top = cosines[rows, best]
    mutual = cosines.argmax(axis=0)[best] == rows
    cosines[rows, best] = -1
    # Squared distances of unit vectors are 2 − 2 cos.
    near = (1 - top) < _RATIO**2 * (1 - cosines.max(axis=1))
    chosen = np.flatnonzero(mutual & near)
    return chosen, best[chosen]


def _fit(
    one: np.ndarray, other: np.ndarray, mirrored: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Fits an affine map to matched points, float32 [n, 2].

    Returns:
      The map, float64 [2, 3], and its inliers, bool [n], each point once; None without a map that
      a copy may have.
    """
    cv2 = opencv()
    affine, inlier = cv2.estimateAffine2D(
        one,
        other,
        method=cv2.RANSAC,
        ransacReprojThreshold=_ERROR,
        maxIters=_TRIALS,
        confidence=0.995,
    )
    if affine is None or not np.isfinite(affine).all():
        return None
    scales = np.linalg.svd(affine[:, :2], compute_uv=False)
    if (
        not _SCALES[0] < scales[1] <= scales[0] < _SCALES[1]
        or scales[0] > _ASPECT * scales[1]
        or (np.linalg.det(affine[:, :2]) < 0) != mirrored
    ):
        return None
    # A point may have several features, one for each of its directions.
    inlier = inlier.ravel().astype(bool)
    chosen = np.flatnonzero(inlier)
    for points in (one, other):
        first = np.unique(np.round(points[chosen]), axis=0, return_index=True)[1]
        chosen = chosen[np.sort(first)]
    inlier[:] = False
    inlier[chosen] = True
    return affine, inlier


def _agreement(one: LocalFeatures, other: LocalFeatures, affine: np.ndarray) -> float:
    """Returns the fraction of the textured windows of the shared part that correlate."""
    cv2 = opencv()
    # Map the small grey images, and draw the one with the finer pixels in the frame of the other.
    factors = [max(x.grey.shape) / (max(x.size) * x.scale) for x in (one, other)]
    affine = _scaled(affine, *factors)
    source, target = one.grey, other.grey
    scale = abs(np.linalg.det(affine[:, :2])) ** 0.5
    if scale > 1:
        source, target, scale = target, source, 1 / scale
        affine = cv2.invertAffineTransform(affine)
    # Reduce first, since warping takes single pixels.
    if scale < 0.7:
        reduced = _reduced(source, scale)
        affine = _scaled(affine, max(reduced.shape) / max(source.shape), 1)
        source = reduced
    size = target.shape[::-1]
    a = cv2.warpAffine(source, affine, size, flags=cv2.INTER_LINEAR).astype(np.float32)
    there = cv2.warpAffine(np.full_like(source, 255), affine, size, flags=cv2.INTER_NEAREST)
    there = cv2.erode(there, np.ones((3, 3), np.uint8)).astype(np.float32) / 255
    b = target.astype(np.float32)

    # Means over each window's pixels that both images have.
    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(x * there, -1, (_WINDOW, _WINDOW)) / weight

    weight = np.maximum(cv2.boxFilter(there, -1, (_WINDOW, _WINDOW)), 1e-6)
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    textured = (there > 0) & (weight > 0.5) & (np.maximum(var_a, var_b) > _FLAT**2)
    if textured.sum() < _WINDOW**2:
        return 0.0
    covariance = (mean(a * b) - mean_a * mean_b)[textured]
    deviations = np.sqrt(np.maximum(var_a, 1) * np.maximum(var_b, 1))[textured]
    return float((covariance > _ALIKE * deviations).mean())


def _root(vectors: np.ndarray) -> np.ndarray:
    """Returns the RootSIFT of SIFT vectors, uint8 [N, 128]: unit vectors, float32."""
    sums = np.maximum(vectors.sum(axis=1, dtype=np.float32, keepdims=True), 1)
    return np.sqrt(vectors / sums)


def _scaled(affine: np.ndarray, of_one: float, of_other: float) -> np.ndarray:
    """Returns an affine map for images whose pixels are scaled by two factors."""
    return np.concatenate([affine[:, :2] / of_one, affine[:, 2:]], axis=1) * of_other


def _reduced(grey: np.ndarray, scale: float) -> np.ndarray:
    """Reduces a grey image by averaging; a scale of 1 or more changes nothing."""
    cv2 = opencv()
    if scale >= 1:
        return grey
    size = [max(1, round(n * scale)) for n in grey.shape[::-1]]
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)

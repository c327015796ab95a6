"""Near copies and outliers of a data set."""

import numpy as np
import pytest
from PIL import Image

from vision.prediction import pictures
from vision.studies import nearness


def compared(images, split=lambda i: 'train'):
    return [
        nearness.Compared(f'{i}', split(i), bytes([i]), pictures.contrast(image))
        for i, image in enumerate(images)
    ]


def test_near_copies_and_outliers(photos, monkeypatch):
    rng = np.random.default_rng(0)
    # Crops of one photo, a resized and a mirrored copy, an exact copy, noise, and a blank image.
    crops = [photos[0][y : y + 120, x : x + 120] for y, x in rng.integers(0, 250, (24, 2))]
    small = np.asarray(Image.fromarray(crops[3]).resize((50, 50)))
    noise = rng.integers(0, 255, (120, 120, 3), np.uint8)
    blank = np.full((9, 9, 3), 200, np.uint8)
    images = [*crops, small, crops[5][:, ::-1], crops[7], noise, blank, blank]
    known = compared(images, lambda i: 'test' if i == 25 else 'train')
    known[26] = known[26]._replace(digest=known[7].digest)
    near, outliers = nearness.compare(known)
    expected = [
        (i, j)
        for i in range(len(images))
        for j in range(i + 1, len(images))
        if known[i].digest != known[j].digest
        and max(
            known[i].thumbnail @ known[j].thumbnail,
            known[i].thumbnail @ known[j].thumbnail.reshape(16, 16)[:, ::-1].ravel(),
        ) >= 0.98
    ]  # fmt: skip
    assert {(int(a), int(b)) for a, b, _ in near} == set(expected) >= {(3, 24), (5, 25)}
    assert near[0][:2] == ['5', '25']  # of two splits
    # Only the first pairs of many are listed.
    monkeypatch.setattr(nearness, 'PAIRS', 1)
    assert nearness.compare(known)[0] == near[:1] and len(near) > 1
    monkeypatch.undo()
    assert all(score <= 1 for *_, score in near)
    # Features decide with the thumbnails: none are near, and one is far.
    features = np.eye(len(images)) + 5
    features[10] *= np.where(np.arange(len(images)) % 2, -1, 1)
    near, outliers = nearness.compare(known, features.astype(np.float32))
    assert [name for name in outliers['train']] == ['10']
    features[[3, 24]] = 1
    features[5] = -features[25]
    near, _ = nearness.compare(known, features.astype(np.float32))
    pairs = {tuple(pair[:2]) for pair in near}
    assert ('3', '24') in pairs and ('5', '25') not in pairs


@pytest.mark.parametrize('count', [0, 1, 2])
def test_few_images(photos, count):
    assert nearness.compare(compared(photos[:count])) == ([], {})

"""Drawing of heat maps, and small grey versions of images to compare them by."""

import numpy as np

from vision.preprocess.pictures import to_rgb

# Side of a thumbnail, and the least correlation of thumbnails of the same image. The correlation
# is at least .98 between a photograph and a copy at a sixth of its size, at JPEG quality 20, or 1.4
# times as bright. It is .95 to .98 for a copy cropped by 3 % at each edge, but also for many pairs
# of digits.
SIDE, CORRELATION = 16, 0.98


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lays a heat map over an image.

    Args:
      image: uint8 [H, W, C].
      heat: float32 [H, W] in 0 … 1. Where it is 0, the image is shown in grey.

    Returns:
      uint8 [H, W, 3].
    """
    from matplotlib import colormaps

    # Draw colour on grey, so that the image's own colours are not mistaken for heat.
    grey = to_rgb(image).astype(np.float32).mean(axis=-1, keepdims=True)
    colour = colormaps['turbo'](heat)[..., :3].astype(np.float32) * 255
    strength = 0.65 * heat[..., None]
    return np.rint(grey * (1 - strength) + colour * strength).astype(np.uint8)


def grey(image: np.ndarray, side: int) -> np.ndarray:
    """Shrinks an image uint8 [H, W, C] to float32 grey [side, side] by averaging.

    The aspect ratio is not kept.
    """
    from PIL import Image

    small = Image.fromarray(to_rgb(image)).convert('L').resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def contrast(image: np.ndarray) -> np.ndarray:
    """Returns the grey thumbnail of an image, uint8 [H, W, C], to correlate it with others.

    Returns:
      The 16 × 16 pixels minus their mean, as a unit vector, float32 [256]; 0 for a blank image. The
      dot product of two is the correlation of the thumbnails.
    """
    pixels = grey(image, SIDE).ravel()
    pixels -= pixels.mean()
    if np.abs(pixels).max() < 1:  # blank: only rounding noise is left
        return np.zeros_like(pixels)
    return pixels / np.linalg.norm(pixels)

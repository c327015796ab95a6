"""Any image file → uint8 [H, W, C], with Pillow, as people expect to see the picture.

The op `decode` reads plain JPEGs faster, with TensorFlow (`vision.preprocess.ops.decode`), and
everything else as `read` does:

* CMYK is converted to RGB, grey is repeated, 16-bit grey is scaled to 8 bits;
* what is transparent is laid on white, as a browser does: dropping the alpha channel would show
  colours that nobody was meant to see;
* the first frame of an animation is taken; EXIF's orientation is applied.

A JPEG that ends before its end marker is refused, though part of the picture is there. One that is
damaged inside and does have its end marker is read as browsers read it: what comes before the
damage is intact, libjpeg goes on behind it as best it can, and neither TensorFlow nor Pillow can
tell that it did (JPEG has no checksum; libjpeg's warning goes to stderr). What libjpeg refuses is refused.
"""

import functools
import io
import warnings
from typing import Any

import numpy as np

from vision.data.source import BadImage

MAX_PIXELS = 200_000_000  # the largest phone cameras; 600 MB as RGB
# Longer side over shorter: resized by its shorter side, a strip of pixels would fill the memory.
MAX_ASPECT = 100


def read(data: bytes, channels: int = 3) -> np.ndarray:
    """Reads any image with Pillow.

    Args:
      data: an encoded image.
      channels: 3 for RGB, 1 for grey.

    Returns:
      uint8 [H, W, channels].

    Raises:
      BadImage: it is no image, is cut off, claims more than MAX_PIXELS, or is a mere strip.
    """
    from PIL import UnidentifiedImageError

    Image = _pillow()
    if not data:
        raise BadImage('empty file')
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise BadImage('not an image') from None
    except Exception as e:  # Pillow's plugins raise whatever the damage leads them to
        raise BadImage(f'damaged header ({e})') from None
    return pixels(image, channels)


def pixels(image: Any, channels: int = 3) -> np.ndarray:
    """The pixels of a `PIL.Image`, whose file may not have been read through yet; see `read`.

    Raises:
      BadImage: the rest of its file is damaged, or its size is refused.
    """
    from PIL import ImageOps

    _check_size(*image.size)
    try:
        image.load()
        return _to_array(ImageOps.exif_transpose(image), channels)
    except Exception as e:
        name = image.format or 'image'
        cut = any(sign in str(e).lower() for sign in ('truncated', 'not enough image data'))
        raise BadImage(f'truncated {name}' if cut else f'damaged {name} ({e})') from None


@functools.cache
def _pillow() -> Any:
    """`PIL.Image`, whose own limit on pixels, which only warns at first, makes way for ours."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings('ignore', module='PIL')  # damaged EXIF, of which millions exist
    return Image


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(
            f'claims {width}x{height} pixels; the limit is {MAX_PIXELS // 1_000_000} million'
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadImage(f'is a strip of {width}x{height} pixels; the limit is {MAX_ASPECT} to 1')


def _to_array(image: Any, channels: int) -> np.ndarray:
    from PIL import Image

    if image.mode.startswith('I') or image.mode == 'F':
        image = _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    image = image.convert('RGB' if channels == 3 else 'L')
    array = np.asarray(image)
    return array if channels == 3 else array[:, :, None]


def _to_8_bit(image: Any) -> Any:
    """Scales 16-bit grey (modes I;16 and I) to 8 bits; Pillow's own conversion clips at 255."""
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if image.mode == 'F':
        values = values * (255.0 if values.max(initial=0) <= 1 else 1.0)
    else:
        values = values / 257.0
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def jpeg_needs_pillow(data: bytes) -> bool:
    """Whether a JPEG's header has an EXIF orientation, or is not as it should be."""
    try:
        image = _pillow().open(io.BytesIO(data))
        _check_size(*image.size)
        return image.getexif().get(0x0112, 1) != 1
    except Exception:
        return True

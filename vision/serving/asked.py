"""Reading of requests: an uploaded file or the path of one below the allowed root, and options."""

import io
import itertools
import json
import os
import stat
from collections.abc import Callable
from typing import Any, NamedTuple

from vision.data.files import is_path, is_read, pillow
from vision.data.source import BadImage
from vision.preprocess.decode import check_icon, check_size, without_metadata

MAX_TOP_K = 1000
_OPTIONS = ('top_k', 'where')
_TEXT = 65536  # bytes of a JSON body, and of all that is not the file in a multipart body
_LONGEST_WHERE = 1000  # characters
# Formats that hold images of other formats, whose sizes only the decoder sees.
_NESTED = {'BLP', 'ICNS'}


class Refused(Exception):
    """Raised for a request that is answered by an error.

    Attributes:
      status: the HTTP status.
      reason: a sentence for the client.
    """

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


class Asked(NamedTuple):
    """A request.

    Attributes:
      name: the name of the uploaded file, or the path as the client wrote it.
      data: the encoded image; None if it must be read from `name`.
      top_k: the number of classes or neighbours.
      where: a condition on neighbours, or None.
    """

    name: str
    data: bytes | None
    top_k: int
    where: str | None


async def read_request(request: Any, max_upload: int, top_k: int) -> Asked:
    """Reads the body of a request.

    Args:
      request: a Starlette request whose stream ends with an exception if the body is too long.
      max_upload: bytes of the largest file.
      top_k: the number of classes or neighbours if the client names none.

    Raises:
      Refused: the body is neither a multipart form with a file nor JSON with a path, or an option
        is not valid.
    """
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    if kind == 'multipart/form-data':
        name, data, options = await _read_form(request, max_upload)
    elif kind == 'application/json':
        name, options = await _read_json(request)
        data = None
    else:
        raise Refused(415, 'send multipart/form-data with a file, or application/json with a path')
    for option in options:
        if option not in _OPTIONS:
            raise Refused(400, f'unknown option {option!r:.80}; known: {", ".join(_OPTIONS)}')
    where = options.get('where')
    if where is not None and (not isinstance(where, str) or len(where) > _LONGEST_WHERE):
        raise Refused(400, f'where must be text of at most {_LONGEST_WHERE} characters')
    return Asked(name, data, _top_k(options.get('top_k', top_k)), where or None)


async def _read_form(request: Any, max_upload: int) -> tuple[str, bytes, dict[str, Any]]:
    """Returns the file's name, its bytes and the options of a multipart form."""
    from starlette.formparsers import MultiPartException, MultiPartParser

    stream = request.stream()
    try:
        parser = MultiPartParser(
            request.headers, stream, max_files=1, max_fields=len(_OPTIONS), max_part_size=_TEXT
        )
        parser.spool_max_size = max_upload + 1  # never write an upload to the disk
        form = await parser.parse()
    except MultiPartException as e:
        raise Refused(400, f'the multipart body is not valid: {e.message}') from None
    finally:
        await stream.aclose()
    options: dict[str, Any] = dict(form.multi_items())
    upload = options.pop('file', None)
    if not hasattr(upload, 'read'):
        raise Refused(400, 'the form has no file in its field "file"')
    try:
        data = await upload.read()
    finally:
        await form.close()
    if len(data) > max_upload:
        raise too_large(max_upload)
    return upload.filename or 'upload', data, options


async def _read_json(request: Any) -> tuple[str, dict[str, Any]]:
    """Returns the path and the options of a JSON body."""
    body, stream = b'', request.stream()
    try:
        async for chunk in stream:
            body += chunk
            if len(body) > _TEXT:
                raise too_large(_TEXT)
    finally:
        await stream.aclose()
    try:
        options = json.loads(body)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise Refused(400, 'the body is not JSON') from None
    if not isinstance(options, dict) or not isinstance(options.get('path'), str):
        raise Refused(400, 'write {"path": "FILE"}')
    return options.pop('path'), options


def too_large(limit: int) -> Refused:
    """Returns the refusal of a body or file of more than `limit` bytes."""
    return Refused(413, f'more than the limit of {limit:,} bytes')


def _top_k(value: Any) -> int:
    """Returns a number of classes or neighbours, which a form has as text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 9:
        value = int(value)
    if type(value) is not int or not 1 <= value <= MAX_TOP_K:
        raise Refused(400, f'top_k must be a whole number from 1 to {MAX_TOP_K:,}')
    return value


def read_below(
    root: str | None, path: str, max_upload: int, hold: Callable[[int], object] = lambda size: None
) -> bytes:
    """Reads a file below the allowed root.

    Args:
      root: the folder; None allows no file.
      path: relative to the root, or absolute.
      max_upload: bytes of the largest file.
      hold: is told the bytes of the file before it is read, and may raise Refused.

    Raises:
      Refused: 403 if the file lies elsewhere, also through links; 404 if there is none; 413 if it
        is too large.
    """
    if root is None:
        raise Refused(403, 'paths are not allowed here; the server needs --root=DIR')
    if not is_path(path):
        raise Refused(404, 'there is no such file')
    # Resolve the links first: whether a file elsewhere exists is not told.
    root = os.path.realpath(root)
    real = os.path.realpath(os.path.join(root, path))
    if os.path.commonpath([root, real]) != root:
        raise Refused(403, 'the path lies outside the allowed folder')
    try:
        # Do not follow a link that took the file's place meanwhile, nor wait for a pipe.
        opened = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            about = os.fstat(opened)
            if not stat.S_ISREG(about.st_mode):
                raise Refused(404, 'there is no such file')
            if about.st_size > max_upload:
                raise too_large(max_upload)
            hold(about.st_size)
            with open(opened, 'rb', closefd=False) as file:
                return file.read(about.st_size)
        finally:
            os.close(opened)
    except OSError:
        raise Refused(404, 'there is no such file') from None


def check_header(data: bytes, max_pixels: int) -> None:
    """Checks what an image claims to be before it is decoded.

    Raises:
      Refused: 415 if the data are not an image; 422 if it has too many pixels, or the shape of a
        strip.
    """
    from PIL import UnidentifiedImageError

    try:
        check_icon(data, max_pixels)
    except BadImage as e:
        raise Refused(422, str(e)) from None
    # Look at what the decoder will open: the file, or the file without damaged metadata.
    unknown = None
    for bare in itertools.chain([data], (copy for copy, _ in without_metadata(data))):
        try:
            with pillow().open(io.BytesIO(bare)) as image:
                kind, (width, height) = image.format, image.size
            break
        except Exception as e:  # Pillow's plug-ins raise any exception for damaged headers
            unknown = isinstance(e, UnidentifiedImageError) if unknown is None else unknown
    else:
        if unknown:
            raise Refused(415, 'not an image' if data else 'empty file')
        raise Refused(422, 'the header of the image is damaged')
    if not is_read(kind):
        raise Refused(415, 'not an image')
    if kind in _NESTED:
        raise Refused(415, f'{kind} files are not accepted')
    try:
        check_size(width, height, max_pixels)
    except BadImage as e:
        raise Refused(422, str(e)) from None


def prepared(data: bytes, prepare: Callable[[bytes], Any], max_pixels: int) -> Any:
    """Returns `prepare(data)` after `check_header`; an image that is broken is refused with 422."""
    check_header(data, max_pixels)
    try:
        return prepare(data)
    except ValueError as e:  # BadImage, or the preprocessing fails
        raise Refused(422, str(e)) from None

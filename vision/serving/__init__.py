"""A server over HTTP: classifies, embeds and searches for images of many clients in batches.

`serve` runs it in this process, `make_app` gives the ASGI app for another server, and `Service` has
the model, the index and the batches.

Read first: `app.py` (routes), `batching.py`.
"""

from typing import TYPE_CHECKING

from vision.core.lazy import public_names

if TYPE_CHECKING:
    from vision.serving.app import make_app
    from vision.serving.batching import Batcher, Full
    from vision.serving.server import serve
    from vision.serving.service import Collection, Service
else:
    __all__, __getattr__, __dir__ = public_names(__name__)

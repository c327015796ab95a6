"""The ops of op strings, one file for each kind, with their host and device forms side by side.

`OPS` has the ops by name, and `parse` reads and checks an op string. A random op gets its numbers
from its `Rng` on the host or its `DeviceRng` on the device.

Read first: `registry.py`, then `crops.py` as an example.
"""

from typing import TYPE_CHECKING

from vision.core.lazy import public_names

if TYPE_CHECKING:
    from vision.preprocess.ops.registry import (
        DEVICE,
        HOST,
        OPS,
        PER_OP,
        DeviceRng,
        Entry,
        Rng,
        channels,
        describe_place,
        find,
        parse,
        place,
    )
else:
    __all__, __getattr__, __dir__ = public_names(__name__)

"""Benchmarks, `python -m benchmarks NAME`, one file each, and the peer's PyTorch programs."""

import os
import signal
import sys

if sys.argv[0] == '-m':  # Python is about to run a command
    # Handle signals before `vision` is imported, because the imports take a moment.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda signum, frame: os._exit(128 + signum))

    from vision.core.startup import at_start

    at_start()

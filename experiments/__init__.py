"""The commands, `python -m experiments.NAME`: each parses its flags, calls `vision` and prints."""

import os
import signal
import sys

if sys.argv[0] == '-m':  # Python is about to run a command
    # Handle signals before `vision` is imported, because the imports take a moment.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda signum, frame: os._exit(128 + signum))

    from vision.core import startup

    startup.at_start()

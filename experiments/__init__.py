"""The commands, `python -m experiments.NAME`: thin files that parse flags, call `vision`, print."""

import os
import signal
import sys

if sys.argv[0] == '-m':  # Python is about to run a command
    # Before anything of `vision` is imported, which takes a moment.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda signum, frame: os._exit(128 + signum))

    from vision.core import startup

    startup.at_start()

"""The benchmarks, `python -m benchmarks NAME`: one file each, and the PyTorch programs of the peer."""

import sys

from vision.core.startup import at_start, leave_on_signals

if sys.argv[0] == '-m':  # Python is about to run a command; nothing has been done yet
    leave_on_signals()
    at_start()

"""The benchmarks, `python -m benchmarks NAME`: one file each, and the PyTorch programs that they measure beside ours."""

import sys

from vision.core.startup import at_start, leave_on_signals

if sys.argv[0] == '-m':  # Python is on its way to the command, and nothing has been done yet
    leave_on_signals()
    at_start()

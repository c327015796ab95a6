"""The commands, `python -m experiments.NAME`: thin files that parse flags, call `vision`, print."""

import sys

from vision.core import startup

if sys.argv[0] == '-m':  # Python is about to run a command; nothing has been done yet
    startup.leave_on_signals()
    startup.at_start()

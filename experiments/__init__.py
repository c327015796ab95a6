"""The commands, `python -m experiments.NAME`: thin files over `vision`."""

import sys

from vision.core import startup

if sys.argv[0] == '-m':  # Python is on its way to the command, and nothing has been done yet
    startup.leave_on_signals()
    startup.at_start()

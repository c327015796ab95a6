"""The benchmarks, `python -m benchmarks NAME`: one file each, and the PyTorch programs that they measure beside ours."""

import sys

from vision.core.startup import use_huge_pages

if sys.argv[0] == '-m':  # Python is on its way to the command, and nothing has been done yet
    use_huge_pages()

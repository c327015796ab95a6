"""Names the command that replaces this one: `python -m benchmarks NAME`."""

import sys

if __name__ == '__main__':
    print(
        'error: experiments.benchmark is now: python -m benchmarks NAME; see --help',
        file=sys.stderr,
    )
    sys.exit(2)

"""What every command line shares: flags read, mistakes in one line, the exit codes of the house.

0 done; 2 the user's mistake; 3 answered in part; 130 and 143 stopped by a signal after the
checkpoint was written; 1 ours (a traceback: please report it).
"""

import signal
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from vision.core.errors import Stopped, UserError, nearest

USER_MISTAKE = 2
ANSWERED_IN_PART = 3


def run(main: Callable[[list[str]], int | None]) -> None:
    """Reads the flags, runs `main(argv)` and leaves the process with its exit code.

    Args:
      main: gets what is left of the command line (the program's name first) and returns the
        exit code; None is 0.
    """
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    try:
        app.run(lambda argv: sys.exit(_main(main, argv)), flags_parser=_parse)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def refuse_arguments(argv: Sequence[str]) -> None:
    """Raises UserError if words are left over: `main`s that take flags only call this first."""
    if len(argv) > 1:
        raise UserError(f'unexpected argument {argv[1]!r}; options are --name=value, see --help')


def require(**values: object) -> None:
    """Raises UserError for the first flag that was not given."""
    for name, value in values.items():
        if value is None:
            raise UserError(f'--{name}=… is missing; see --help')


def _main(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    logging.set_verbosity(logging.ERROR)  # Orbax tells every save
    try:
        return main(argv) or 0
    except UserError as e:
        return _complain(e)
    except Stopped as e:
        print(e, file=sys.stderr)
        return 128 + e.signum
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return 0


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as e:
        sys.exit(_complain(e))
    # What ml_collections raises for a wrong key, type or file of --config, and a config for a
    # wrong argument. Other flags raise flags.Error.
    except (UserError, AttributeError, KeyError, TypeError, ValueError, OSError) as e:
        sys.exit(_complain(_explain(e, argv)))


def _complain(error: object) -> int:
    print('error: ' + ' '.join(str(error).split()), file=sys.stderr)
    return USER_MISTAKE


def _explain(error: Exception, argv: Sequence[str]) -> str:
    """Turns what ml_collections says about --config into what the user can mend."""
    text = str(error.args[0]) if error.args else repr(error)
    if isinstance(error, UserError):  # raised in a config file; ml_collections adds the traceback
        return text.strip().splitlines()[-1].split('UserError: ')[-1]
    if isinstance(error, OSError):
        return _explain_file(argv) or text
    if isinstance(error, AttributeError | KeyError):
        return _explain_key(text, argv)
    return text.strip().splitlines()[-1]


def _explain_file(argv: Sequence[str]) -> str | None:
    from pathlib import Path

    value = next((a.split('=', 1)[1] for a in argv if a.startswith('--config=')), None)
    if value is None:
        return None
    path = Path(value.split(':')[0])
    if path.is_file():
        return None
    known = [p.name for p in path.parent.glob('*.py')] if path.parent.is_dir() else []
    guess = nearest(path.name, known)
    hint = f'; did you mean {path.parent / guess}?' if guess else ''
    return f'--config={value}: there is no file {path}{hint}'


def _explain_key(text: str, argv: Sequence[str]) -> str:
    """Names the override that does not exist, and the nearest one that does."""
    try:
        known = _leaves(flags.FLAGS['config'].value)
    except Exception:  # the config itself could not be built: its own error is the best there is
        return text.strip().splitlines()[-1]
    for argument in argv:
        key = argument.lstrip('-').split('=', 1)[0]
        if key.startswith('config.') and key.removeprefix('config.') not in known:
            guess = nearest(key.removeprefix('config.'), known)
            hint = f'; did you mean --config.{guess}?' if guess else ''
            return f'--{key}: the config has no such key{hint}'
    return text.strip().splitlines()[-1]


def _leaves(config, prefix: str = '') -> list[str]:
    names = []
    for key in config:
        value = config.get_ref(key).get() if hasattr(config, 'get_ref') else config[key]
        is_dict = hasattr(value, 'keys')
        names += _leaves(value, f'{prefix}{key}.') if is_dict else [prefix + key]
    return names

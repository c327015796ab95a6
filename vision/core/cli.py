"""Shared code of all commands: flag parsing, one-line error messages and exit codes.

Exit codes: 0: done; 2: a mistake of the user; 3: a partial result, because some images could not be
read or some trials failed; 130 and 143: stopped by SIGINT or SIGTERM after the checkpoint was
written; 1: an error in this code, with a traceback (please report it).
"""

import ast
import errno
import logging as standard_logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, FieldReference, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser
from ml_collections.config_flags.tuple_parser import TupleParser

from vision.core import startup
from vision.core.config import plain
from vision.core.errors import Stopped, UserError
from vision.core.help import heading as heading
from vision.core.help import help_text

USER_MISTAKE = 2
ANSWERED_IN_PART = 3

# Errors of a full disk or quota.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors of a path that the user gave.
_NOT_ALLOWED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)


def run(main: Callable[[list[str]], int | None]) -> None:
    """Parses the flags, runs `main(argv)` and exits with its exit code.

    Args:
      main: takes the rest of the command line (the program's name first) and returns the exit
        code; None means 0.
    """
    # Catch signals first, so that they end the process quietly from here on.
    startup.Leaving.start()
    try:
        app.run(lambda argv: sys.exit(_main(main, argv)), flags_parser=_parse)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        startup.let_go_of_stdout()
        startup.Leaving.finish()


def define_config() -> flags.FlagHolder:
    """Defines --config=FILE[:ARGUMENT] and its overrides, --config.a.b=VALUE.

    An override may add an argument of the model, the source, the optimizer, the schedule or the
    loss. Unknown arguments are refused when the config is used, with the nearest known name.
    """
    accept_none()
    holder = config_flags.DEFINE_config_file(
        'config',
        None,
        'FILE or FILE:ARGUMENT, the experiment: a file in configs/ or one of your own. '
        '--config.KEY=VALUE changes a key.',
        lock_config=False,
        accept_new_attributes=True,
    )
    # Replace the parser by one that converts NumPy and JAX values.
    flags.FLAGS['config'].parser = _PlainConfigFile('config', lock_config=False)
    return holder


def accept_none() -> None:
    """Lets overrides of config flags set values of every type to None: --config.a.b=None."""
    for kind, read in (
        (float, _or_share(flags.FloatParser().parse)),
        (int, _or_share(flags.IntegerParser().parse)),
        (bool, flags.BooleanParser().parse),
        (tuple, TupleParser().parse),
        (str, str),
        (ConfigDict, _read_section),
        (type(None), read_literal),
    ):
        config_flags.register_flag_parser_for_type(kind, _OrNone(read))


class _PlainConfigFile(ConfigFileFlagParser):
    """Reads a config file and converts its NumPy and JAX values to plain Python values.

    The type of a value determines how its override is parsed.
    """

    def parse(self, path: str) -> Any:
        """Returns the config in a file, with plain values."""
        config = super().parse(path)
        if isinstance(config, ConfigDict):
            make_plain(config, 'config')
        return config


def make_plain(config: Any, name: str) -> None:
    """Converts the values of a config to plain Python values in place.

    References to other keys are kept.
    """
    for key, value in config.items(preserve_field_references=True):
        if isinstance(value, ConfigDict):
            make_plain(value, f'{name}.{key}')
        elif not isinstance(value, FieldReference):
            with config.ignore_type():
                config[key] = plain(value, f'{name}.{key}')


class _OrNone(flags.ArgumentParser):
    """Parses 'None' as None and other text with a function.

    A value that is not text is a default and is returned unchanged.
    """

    def __init__(self, read: Callable[[str], Any]):
        super().__init__()
        self._read = read

    def parse(self, argument: Any) -> Any:
        """Returns the value of an argument from the command line."""
        if not isinstance(argument, str):
            return argument
        return None if argument == 'None' else self._read(argument)


def _or_share(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Makes a number parser keep '10%' as text: data.validation may be a number or a percentage."""
    return lambda text: text if text.endswith('%') else read(text)


def _read_section(text: str) -> ConfigDict:
    """Parses a dict literal into a section."""
    value = read_literal(text)
    if not isinstance(value, dict):
        raise ValueError(f'{text!r} is not a dict')
    return ConfigDict(value)


def read_literal(text: str) -> Any:
    """Returns the value of a Python literal; other text is returned unchanged."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def define_distributed() -> Callable[[], None]:
    """Defines --distributed and the flags that machines without a cluster manager need.

    Returns:
      A function that joins the other processes if --distributed is set. It must be called before
      JAX is used.
    """
    distributed_flag = flags.DEFINE_bool(
        'distributed',
        False,
        'Run as one of several processes; found automatically on Slurm, Open MPI, GKE, Cloud TPU.',
    )
    coordinator = flags.DEFINE_string(
        'coordinator', None, 'HOST:PORT of process 0, if it cannot be found automatically.'
    )
    num_processes = flags.DEFINE_integer('num_processes', None, 'Number of processes.', 1)
    process_id = flags.DEFINE_integer('process_id', None, 'Number of this process, from 0.', 0)

    def join() -> None:
        # The flags are read only after parsing.
        values = (coordinator.value, num_processes.value, process_id.value)
        if distributed_flag.value:
            from vision.core import distributed

            distributed.initialize(*values)
        elif any(value is not None for value in values):
            raise UserError('--coordinator, --num_processes and --process_id need --distributed')

    return join


def refuse_options(command: str, options: Mapping[str, str]) -> None:
    """Raises UserError for an option on the command line that the command would ignore.

    Args:
      command: a key of `options`.
      options: the names of the options that belong to some commands only, by command.
    """
    for name in sorted({n for names in options.values() for n in names.split()}):
        if flags.FLAGS[name].present and name not in options[command].split():
            raise UserError(f'leave out --{name}: `{command}` does not have this option')


def refuse_arguments(argv: Sequence[str]) -> None:
    """Raises UserError if the command line has arguments that are not flags."""
    if len(argv) > 1:
        raise UserError(f'unexpected argument {argv[1]!r}; write flags as --name=value, see --help')


def require(**values: object) -> None:
    """Raises UserError for the first flag that was not given, with an example from the help."""
    for name, value in values.items():
        if value is None:
            examples = (sys.modules['__main__'].__doc__ or '').partition('Examples:')[2]
            found = re.search(rf'--{name}=\S+', examples)
            example = f', for example {found[0]}' if found else ''
            raise UserError(f'--{name}=… is missing{example}; see --help')


def _main(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    """Prepares the process and runs `main`; converts its exceptions to exit codes."""
    # Show warnings only, without absl's prefix, and set up JAX before it has a backend.
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(_Plain())
    _quiet_orbax()
    startup.tune()
    startup.use_compilation_cache()
    try:
        return main(argv) or 0
    except Exception as e:
        if startup.Leaving.received is not None:  # a library failed because it was interrupted
            return 128 + startup.Leaving.received
        return _end(e)


def _end(error: Exception) -> int:
    """Returns the exit code for an exception of `main`.

    Mistakes of the user and failures of the file system are reported in one line.
    """
    if isinstance(error, UserError):
        return _complain(error)
    if isinstance(error, Stopped):
        print(error, file=sys.stderr)
        return 128 + error.signum
    if isinstance(error, BrokenPipeError):  # the reader of a pipe, such as `| head`, has ended
        return 0
    # Report a full disk and unusable paths by their names.
    if isinstance(error, OSError):
        if error.errno in _NO_ROOM:
            return _complain_of_room(error)
        if error.errno in _NOT_ALLOWED and error.filename and not _is_one_of_several():
            return _complain(f'{error.filename}: {error.strerror}')
    # An exception in user-defined code is the user's mistake: name the line.
    from vision.core.own_code import place_of

    if (place := place_of(error)) is not None and not _is_one_of_several():
        return _complain(f'{place}: {type(error).__name__}: {error!s:.300}')
    return _fail(error)


class _Plain(standard_logging.Formatter):
    """Formats a log record as 'warning: …', like the 'error: …' of a mistake."""

    def format(self, record: standard_logging.LogRecord) -> str:
        """Returns the level in lower case and the message."""
        return f'{record.levelname.lower()}: {super().format(record)}'


def _is_one_of_several() -> bool:
    """True if this process has joined a distributed run."""
    jax = sys.modules.get('jax')
    return jax is not None and jax.distributed.is_initialized()


def _fail(error: Exception) -> int:
    """Reports an error in this code with its traceback.

    In a distributed run the process exits at once: a normal exit would wait for the other
    processes, which do not know of the failure.
    """
    if not _is_one_of_several():
        raise error
    from vision.core import distributed

    traceback.print_exception(error)
    distributed.leave(1)
    return 1


def _quiet_orbax() -> None:
    """Silences the tracebacks that Orbax's threads print; Orbax also raises the same exceptions.

    When a disk is full, a traceback is printed by each of Orbax's threads, by each task of its
    event loop, and by each writer that resumes after this loop is closed.
    """

    def of_thread(failed: threading.ExceptHookArgs) -> None:
        if isinstance(failed.exc_value, OSError) and failed.exc_value.errno in _NO_ROOM:
            # The thread is TensorBoard's event writer; the main thread would wait for it forever.
            os._exit(_complain_of_room(failed.exc_value))
        if not type(failed.thread).__module__.startswith('orbax'):
            threading.__excepthook__(failed)

    before = sys.unraisablehook

    def of_writer(failed: Any) -> None:
        if str(failed.exc_value) != 'Event loop is closed':
            before(failed)

    threading.excepthook, sys.unraisablehook = of_thread, of_writer
    # asyncio logs the exceptions of tasks that are not awaited.
    asyncio_logger = standard_logging.getLogger('asyncio')
    asyncio_logger.addFilter(lambda record: 'was never retrieved' not in record.getMessage())


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags; returns the rest. Exits with 2 and one line on a mistake."""
    if indexed := next(filter(None, (re.match(r'--?(config\.[\w.]+)\[', w) for w in argv)), None):
        # ml_collections cannot set one entry of a tuple; it would raise an IndexError.
        sys.exit(
            _complain(
                f'{indexed.string}: single entries cannot be set; give the whole value, '
                f'for example --{indexed[1]}="(0.5, 0.5)"'
            )
        )
    asked = {
        word for word in argv[1:] if word in ('-h', '-help', '--help', '--helpshort', '--helpfull')
    }
    try:
        if asked:
            print(help_text())
            if '--helpfull' in asked:
                print(flags.FLAGS.get_help())
            sys.exit(0)
        rest = flags.FLAGS(argv)
        if 'config' in flags.FLAGS and flags.FLAGS['config'].value is not None:
            # Read the config now; a missing file would otherwise raise an error on first use.
            flags.FLAGS['config'].value.keys()
        return rest
    except BrokenPipeError:  # the reader of --help has ended
        sys.exit(0)
    except Exception as e:
        # absl raises its own errors; a config file and ml_collections may raise any exception.
        from vision.core.config_mistakes import explained

        sys.exit(_complain(explained(e, argv)))


def _complain(error: object) -> int:
    """Prints an error in one line on stderr; returns the exit code of a user's mistake."""
    print('error: ' + ' '.join(str(error).split()), file=sys.stderr)
    return USER_MISTAKE


def _complain_of_room(error: OSError) -> int:
    """Reports a full disk."""
    where = f'{error.filename}: ' if error.filename else ''
    return _complain(
        f'{where}{error.strerror}; free some disk space and start the same command again'
    )

"""The part that all command lines share: flags read, mistakes in one line, the exit codes of the house.

0 done; 2 the user's mistake; 3 answered in part; 130 and 143 stopped by a signal after the
checkpoint was written; 1 ours (a traceback: please report it).
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
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, FieldReference, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser
from ml_collections.config_flags.tuple_parser import TupleParser

from vision.core import startup
from vision.core.config import plain
from vision.core.errors import Stopped, UserError

USER_MISTAKE = 2
ANSWERED_IN_PART = 3

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)


def run(main: Callable[[list[str]], int | None]) -> None:
    """Reads the flags, runs `main(argv)` and leaves the process with its exit code.

    Args:
      main: gets what is left of the command line (the program's name first) and returns the
        exit code; None is 0.
    """
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
    loss; whoever takes the arguments refuses what it does not know, with the nearest name.
    """
    accept_none()
    holder = config_flags.DEFINE_config_file(
        'config',
        None,
        'The experiment, a file in configs/.',
        lock_config=False,
        accept_new_attributes=True,
    )
    flags.FLAGS['config'].parser = _PlainConfigFile('config', lock_config=False)
    return holder


def accept_none() -> None:
    """Lets overrides of config flags, --config.a.b=None, say None for values of all types."""
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
    """Reads a config file, and makes its NumPy and JAX values plain: by their types overrides are read."""

    def parse(self, path: str) -> Any:
        """Returns the config."""
        config = super().parse(path)
        if isinstance(config, ConfigDict):
            make_plain(config, 'config')
        return config


def make_plain(config: Any, name: str) -> None:
    """Makes the values of a config plain, in place; what refers to another key stays as it is."""
    for key, value in config.items(preserve_field_references=True):
        if isinstance(value, ConfigDict):
            make_plain(value, f'{name}.{key}')
        elif not isinstance(value, FieldReference):
            with config.ignore_type():
                config[key] = plain(value, f'{name}.{key}')


class _OrNone(flags.ArgumentParser):
    """Reads 'None' as None, and other words with a function; what is no text is a default and stays."""

    def __init__(self, read: Callable[[str], Any]):
        super().__init__()
        self._read = read

    def parse(self, argument: Any) -> Any:
        """Returns the value of a word of the command line."""
        if not isinstance(argument, str):
            return argument
        return None if argument == 'None' else self._read(argument)


def _or_share(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Reads '10%' as it is, where a config file has a number: data.validation takes both."""
    return lambda text: text if text.endswith('%') else read(text)


def _read_section(text: str) -> ConfigDict:
    value = read_literal(text)
    if not isinstance(value, dict):
        raise ValueError(f'{text!r} is no dict')
    return ConfigDict(value)


def read_literal(text: str) -> Any:
    """A word of the command line as Python reads it, or else as text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def define_distributed() -> Callable[[], None]:
    """Defines --distributed and what plain machines need beside it.

    Returns:
      What joins the other processes, if the flags say so; to be called before JAX is used.
    """
    distributed_flag = flags.DEFINE_bool(
        'distributed', False, 'Several processes are one run: Slurm, Open MPI, GKE, Cloud TPU.'
    )
    coordinator = flags.DEFINE_string(
        'coordinator', None, 'HOST:PORT of process 0, where nothing else tells.'
    )
    num_processes = flags.DEFINE_integer('num_processes', None, 'How many there are.', 1)
    process_id = flags.DEFINE_integer('process_id', None, "This one's number, from 0.", 0)

    def join() -> None:
        values = (coordinator.value, num_processes.value, process_id.value)
        if distributed_flag.value:
            from vision.core import distributed

            distributed.initialize(*values)
        elif any(value is not None for value in values):
            raise UserError('--coordinator, --num_processes and --process_id need --distributed')

    return join


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
    logging.set_verbosity(logging.WARNING)
    _quiet_orbax()
    startup.tune()
    startup.use_compilation_cache()
    try:
        return main(argv) or 0
    except Exception as e:
        if startup.Leaving.received is not None:  # a library's error for the interruption
            return 128 + startup.Leaving.received
        return _end(e)


def _end(error: Exception) -> int:
    """The exit status for what `main` raised; says in a line what is not a fault of the program."""
    if isinstance(error, UserError):
        return _complain(error)
    if isinstance(error, Stopped):
        print(error, file=sys.stderr)
        return 128 + error.signum
    if isinstance(error, BrokenPipeError):  # `| head` has seen enough
        return 0
    if isinstance(error, OSError):
        if error.errno in _NO_ROOM:
            return _complain_of_room(error)
        if error.errno in _NOT_ALLOWED and error.filename and not _is_one_of_several():
            return _complain(f'{error.filename}: {error.strerror}')
    from vision.core.own_code import place_of

    if (place := place_of(error)) is not None and not _is_one_of_several():
        return _complain(f'{place}: {type(error).__name__}: {error!s:.300}')
    return _fail(error)


def _is_one_of_several() -> bool:
    jax = sys.modules.get('jax')
    return jax is not None and jax.distributed.is_initialized()


def _fail(error: Exception) -> int:
    """Shows what is ours, and where others would be waited for that do not know, leaves at once."""
    if not _is_one_of_several():
        raise error
    from vision.core import distributed

    traceback.print_exception(error)
    distributed.leave(1)
    return 1


def _quiet_orbax() -> None:
    """Leaves out what Orbax tells of failures: it raises them where it is waited for.

    Of a disk that is full its threads, the tasks of its event loop and the writers that come back
    to a loop that is closed by then all print tracebacks of their own.
    """

    def of_thread(failed: threading.ExceptHookArgs) -> None:
        if isinstance(failed.exc_value, OSError) and failed.exc_value.errno in _NO_ROOM:
            # The writer of TensorBoard's events: the main thread would wait for it for ever.
            os._exit(_complain_of_room(failed.exc_value))
        if not type(failed.thread).__module__.startswith('orbax'):
            threading.__excepthook__(failed)

    before = sys.unraisablehook

    def of_writer(failed: Any) -> None:
        if str(failed.exc_value) != 'Event loop is closed':
            before(failed)

    threading.excepthook, sys.unraisablehook = of_thread, of_writer
    asyncio_logger = standard_logging.getLogger('asyncio')
    asyncio_logger.addFilter(lambda record: 'was never retrieved' not in record.getMessage())


def _parse(argv: Sequence[str]) -> list[str]:
    if indexed := next(filter(None, (re.match(r'--?(config\.[\w.]+)\[', w) for w in argv)), None):
        # Configs have tuples, of which ml_collections cannot set an entry: it ends in an IndexError.
        sys.exit(
            _complain(
                f'{indexed.string}: entries are not set one by one; give the whole value, as --{indexed[1]}="(0.5, 0.5)"'
            )
        )
    try:
        rest = flags.FLAGS(argv)
        if 'config' in flags.FLAGS and flags.FLAGS['config'].value is not None:
            flags.FLAGS['config'].value.keys()  # a file that is not there fails only when read
        return rest
    except BrokenPipeError:  # of --help
        sys.exit(0)
    except (
        Exception
    ) as e:  # beside absl's errors, whatever a config file's code and ml_collections raise
        from vision.core.config_mistakes import explained

        sys.exit(_complain(explained(e, argv)))


def _complain(error: object) -> int:
    print('error: ' + ' '.join(str(error).split()), file=sys.stderr)
    return USER_MISTAKE


def _complain_of_room(error: OSError) -> int:
    where = f'{error.filename}: ' if error.filename else ''
    return _complain(f'{where}{error.strerror}; make room and start the same command again')

"""The part that all commands share: flags, mistakes reported in one line, and exit codes.

Exit codes: 0 done; 2 the user's mistake; 3 answered in part; 130 and 143 stopped by SIGINT or SIGTERM
(a run writes its checkpoint first); 1 a fault of the program, with a traceback.
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
from vision.core.help import heading as heading
from vision.core.help import help_text

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
    """Reads the flags, runs `main(argv)` and ends the process with its exit code.

    Args:
      main: gets the words that are no flags, the program's name first, and returns the exit code;
        None is 0.
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
    loss. The function that takes the arguments refuses unknown ones and names the nearest.
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
    flags.FLAGS['config'].parser = _PlainConfigFile('config', lock_config=False)
    return holder


def accept_none() -> None:
    """Lets overrides of config flags, as --config.a.b=None, be None for values of all types."""
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
    """Reads a config file and makes NumPy and JAX values plain: overrides are read by type."""

    def parse(self, path: str) -> Any:
        """Returns the config."""
        config = super().parse(path)
        if isinstance(config, ConfigDict):
            make_plain(config, 'config')
        return config


def make_plain(config: Any, name: str) -> None:
    """Makes the values of a config plain, in place; references to other keys are kept."""
    for key, value in config.items(preserve_field_references=True):
        if isinstance(value, ConfigDict):
            make_plain(value, f'{name}.{key}')
        elif not isinstance(value, FieldReference):
            with config.ignore_type():
                config[key] = plain(value, f'{name}.{key}')


class _OrNone(flags.ArgumentParser):
    """Reads 'None' as None and other words with a function; keeps defaults, which are not text."""

    def __init__(self, read: Callable[[str], Any]):
        super().__init__()
        self._read = read

    def parse(self, argument: Any) -> Any:
        """Returns the value of a word from the command line."""
        if not isinstance(argument, str):
            return argument
        return None if argument == 'None' else self._read(argument)


def _or_share(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Keeps '10%' as text where a config file has a number: data.validation takes both."""
    return lambda text: text if text.endswith('%') else read(text)


def _read_section(text: str) -> ConfigDict:
    value = read_literal(text)
    if not isinstance(value, dict):
        raise ValueError(f'{text!r} is not a dict')
    return ConfigDict(value)


def read_literal(text: str) -> Any:
    """Returns a word of the command line as a Python literal, or as text if it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def define_distributed() -> Callable[[], None]:
    """Defines --distributed and the flags that plain machines need with it.

    Returns:
      A function that joins the other processes if the flags ask for it; call it before JAX is used.
    """
    distributed_flag = flags.DEFINE_bool(
        'distributed',
        False,
        'Join the other processes of this run. Slurm, Open MPI, GKE and Cloud TPU need no more.',
    )
    coordinator = flags.DEFINE_string(
        'coordinator', None, 'HOST:PORT of process 0, on machines without such a scheduler.'
    )
    num_processes = flags.DEFINE_integer('num_processes', None, 'Number of processes.', 1)
    process_id = flags.DEFINE_integer('process_id', None, 'Number of this process, from 0.', 0)

    def join() -> None:
        values = (coordinator.value, num_processes.value, process_id.value)
        if distributed_flag.value:
            from vision.core import distributed

            distributed.initialize(*values)
        elif any(value is not None for value in values):
            raise UserError('--coordinator, --num_processes and --process_id need --distributed')

    return join


def refuse_arguments(argv: Sequence[str]) -> None:
    """Raises UserError if words are left over; called by commands that take flags only."""
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
    """Returns the exit code for an exception; prints a line unless the program is at fault."""
    if isinstance(error, UserError):
        return _complain(error)
    if isinstance(error, Stopped):
        print(error, file=sys.stderr)
        return 128 + error.signum
    if isinstance(error, BrokenPipeError):  # `| head` has closed the pipe
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
    """Raises the error; with several processes, prints it and ends this process at once."""
    if not _is_one_of_several():
        raise error
    from vision.core import distributed

    traceback.print_exception(error)
    distributed.leave(1)
    return 1


def _quiet_orbax() -> None:
    """Suppresses the tracebacks that Orbax prints in addition to the exceptions that it raises.

    When a disk is full, its threads, the tasks of its event loop and the writers that return to a
    closed loop all print tracebacks.
    """

    def of_thread(failed: threading.ExceptHookArgs) -> None:
        if isinstance(failed.exc_value, OSError) and failed.exc_value.errno in _NO_ROOM:
            # The writer of TensorBoard's events. The main thread would wait for it forever.
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
        # ml_collections cannot set an entry of a tuple: it raises IndexError.
        sys.exit(
            _complain(
                f'{indexed.string}: single entries cannot be set; give the whole value, as '
                f'--{indexed[1]}="(0.5, 0.5)"'
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
            flags.FLAGS['config'].value.keys()  # a missing file fails only when it is read
        return rest
    except BrokenPipeError:  # of --help
        sys.exit(0)
    except (
        Exception
    ) as e:  # absl's errors, and whatever a config file's code or ml_collections raises
        from vision.core.config_mistakes import explained

        sys.exit(_complain(explained(e, argv)))


def _complain(error: object) -> int:
    print('error: ' + ' '.join(str(error).split()), file=sys.stderr)
    return USER_MISTAKE


def _complain_of_room(error: OSError) -> int:
    where = f'{error.filename}: ' if error.filename else ''
    return _complain(f'{where}{error.strerror}; make room and start the same command again')

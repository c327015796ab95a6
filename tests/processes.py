"""Runs commands in separate processes, as forks of a warm server if the environment allows it."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

REPO = Path(__file__).parent.parent

# Tests run a program only a few times, so that LLVM's passes and the MLIR of fusions would take
# most of the time. Runs of many steps get slightly more effort than the minimum. JAX 0.12 has only
# one kind of fusion and does not know the last flag.
LESS_EFFORT = '--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true'
LEAST_EFFORT = LESS_EFFORT.replace('level=1', 'level=0')
if version('jaxlib').startswith('0.10.'):
    LEAST_EFFORT += ' --xla_cpu_use_fusion_emitters=false'

# The `compiler_options` with which a program is compiled as users' programs are.
FULL_EFFORT = {'xla_backend_optimization_level': 3, 'xla_llvm_disable_expensive_passes': False}
if 'fusion_emitters' in LEAST_EFFORT:
    FULL_EFFORT['xla_cpu_use_fusion_emitters'] = True

# Environment variables that can be set in a fork. All others are read when Python, JAX or
# TensorFlow starts.
_FORKABLE = {'XLA_FLAGS', 'COLUMNS', 'PYTHONPATH', 'PYTHONIOENCODING'}


def command(module: str, *args: object) -> list[str]:
    """Returns the words of the command line `python -m module args…`."""
    return [sys.executable, '-m', module, *map(str, args)]


def environment(devices: int = 1, **env: str) -> dict[str, str]:
    """Returns this environment with `devices` simulated devices and the changes `env`."""
    return {
        **os.environ,
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} {LEAST_EFFORT}',
        'COLUMNS': '120',
        **env,
    }


class Process:
    """A running `python -m module args…`, with its output in files.

    Args:
      module, args: what to run.
      devices: how many devices to simulate.
      cwd: the working directory.
      env: changes to the environment. Variables that a fork cannot take start a new interpreter.
    """

    def __init__(self, module: str, *args: object, devices: int = 1, cwd=REPO, **env: str):
        self._folder = tempfile.TemporaryDirectory(prefix='vision-test-')
        out, err = (f'{self._folder.name}/{name}' for name in ('stdout', 'stderr'))
        for path in (out, err):
            Path(path).touch()
        self._words = [module, *map(str, args)]
        self._own, self.returncode = None, None
        full = environment(devices, **env)
        if set(env) <= _FORKABLE:
            self.pid = _ask(start=self._words, env=full, cwd=str(cwd), stdout=out, stderr=err)[
                'pid'
            ]
            return
        with open(out, 'w') as stdout, open(err, 'w') as stderr:
            self._own = subprocess.Popen(
                command(module, *args),
                env=full,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
        self.pid = self._own.pid

    def wait(self, seconds: float = 600) -> subprocess.CompletedProcess:
        """Waits for the end of the process.

        Raises:
          TimeoutError: the process did not end within `seconds` and was killed.
        """
        if self.poll(seconds) is None:
            self.kill()
            raise TimeoutError(f'{self._words} ran for more than {seconds} s\n{self.stderr}')
        return subprocess.CompletedProcess(self._words, self.returncode, self.stdout, self.stderr)

    def poll(self, seconds: float = 0.0) -> int | None:
        """Returns the exit code, or None if the process still runs after `seconds`."""
        if self.returncode is None and self._own is not None:
            try:
                self.returncode = self._own.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
        elif self.returncode is None:
            self.returncode = _ask(wait=self.pid, seconds=seconds)['code']
        return self.returncode

    def wait_for(self, happened, seconds: float = 120, every: float = 0.002):
        """Waits until `happened()` is true; fails if the process ends before."""
        end = time.monotonic() + seconds
        while not (found := happened()):
            assert time.monotonic() < end and self.poll() is None, self.stderr
            time.sleep(every)
        return found

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(9)
        self.poll(10)

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return Path(self._folder.name, 'stdout').read_text()

    @property
    def stderr(self) -> str:
        """What it has written so far."""
        return Path(self._folder.name, 'stderr').read_text()


def run_module(module: str, *args: object, **options) -> subprocess.CompletedProcess:
    """Runs `python -m module args…` to its end, with the options of `Process`."""
    return Process(module, *args, **options).wait()


def _ask(**request) -> dict:
    server = start_server()
    server.stdin.write(json.dumps(request) + '\n')
    server.stdin.flush()
    return json.loads(server.stdout.readline())


@functools.cache
def start_server() -> subprocess.Popen:
    """Starts the server of this process at the first call; its first request waits for imports."""
    server = subprocess.Popen(
        [sys.executable, '-m', 'tests.fork_server'],
        env=environment(),
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)
    return server

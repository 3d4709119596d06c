"""What the tests of faults share: a script in a process of its own, which must end in time and as expected."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest


@pytest.fixture
def run_script(tmp_path):
    """Run a script in a new process, and return what it printed.

    It is killed, with the children that it started, after some seconds, and then the test fails; also if the process
    ends with another exit code than expected, or if an exception was lost in compiled code, of which Python then says
    that it was ignored. Keyword arguments are environment variables.
    """

    def run(script, *arguments, exit_code=0, seconds=150, **environment):
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(script))
        process = subprocess.Popen(
            [sys.executable, path, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            pytest.fail(f"the process did not end in {seconds} s:\n{output}\n{errors[-4000:]}")
        assert process.returncode == exit_code, f"exit code {process.returncode}:\n{output}\n{errors[-4000:]}"
        assert "Exception ignored" not in errors, errors[-4000:]
        return output

    return run

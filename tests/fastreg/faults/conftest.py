"""What the tests of faults share: a script in a process of its own, which must end in time and as expected."""

import pytest


@pytest.fixture
def run_script(run_process):
    """Run a script in a new process, and return what it printed; arguments as for `run_process`.

    The test fails if the process ends with another exit code than expected, or if an exception was lost in compiled
    code, of which Python then says that it was ignored.
    """

    def run(script, *arguments, exit_code=0, seconds=150, **options):
        code, output, errors = run_process(script, *arguments, seconds=seconds, **options)
        assert code == exit_code, f"exit code {code}:\n{output}\n{errors[-4000:]}"
        assert "Exception ignored" not in errors, errors[-4000:]
        return output

    return run

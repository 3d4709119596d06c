"""Imports TensorFlow once, and runs each script that it is given in a child: importing takes longer than most scripts.

A child is forked before TensorFlow or Keras has started anything, so that it is like any process that has just imported
them. Numba and fastreg, which read the environment and keep track of forks, are not imported here.

Each line of the standard input is a request, and each child answers with two lines: its number, and its exit code.
"""

import json
import os
import sys
import types

import keras  # noqa: F401 - for the children
import tensorflow  # noqa: F401


def serve():
    """Fork a child for each request. Returns its request in each child, and None at the end of the requests."""
    with os.fdopen(os.dup(0)) as requests, os.fdopen(os.dup(1), "w") as replies:
        for request in iter(requests.readline, ""):
            child = os.fork()
            if child == 0:
                return json.loads(request)
            print(child, file=replies, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=replies, flush=True)
    return None


def become(request):
    """Make this process what it would be if Python had been started with the script."""
    os.setsid()
    streams = ((os.devnull, os.O_RDONLY), (request["stdout"], os.O_WRONLY), (request["stderr"], os.O_WRONLY))
    for number, (path, flags) in enumerate(streams):
        opened = os.open(path, flags | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[:] = [request["path"], *request["arguments"]]
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    module.__file__ = request["path"]
    return module


if __name__ == "__main__":
    asked = serve()
    if asked is not None:
        main = become(asked)
        with open(asked["path"], encoding="utf-8") as file:  # noqa: PTH123 - as few modules as Python itself uses
            source = file.read()
        exec(compile(source, asked["path"], "exec"), main.__dict__)

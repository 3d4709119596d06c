"""The command `python -m fastreg_benchmarks.soak`."""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from fastreg_benchmarks.soak.command import main

sys.exit(main())

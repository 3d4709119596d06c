"""Draw benchmarks/results/penalty.png from the newest run in penalty.csv, or print the README's table (`--table`)."""

import sys

from fastreg_benchmarks import figures

sys.exit(figures.main())

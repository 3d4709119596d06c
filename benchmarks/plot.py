"""Draw benchmarks/results/penalty.png and refresh the tables of README.md and docs from the newest results."""

import sys

from fastreg_benchmarks import documents

sys.exit(documents.main())

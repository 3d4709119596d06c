"""The state of a lazily regularised table, which its ops, native and plain, keep beside its rows.

A step with learning rate η shrinks every weight, `w ← sign(w) · max(0, a·|w| − b)`, with `a = 1 − 2·η·l2` and
`b = η·l1`. Zero is absorbing, so any number of such steps is one: with the running product `P = Π a` and the running
sum `S = Σ b / P` (P after that step), a weight that was last written when they were `P0` and `S0` now is

    sign(w) · max(0, (P / P0) · |w| − P · (S − S0))

The stamps of a table are P0 and S0 of each row, and behind these, in `ROWS` more rows, the numbers of the whole table.

Sources: Carpenter (2008), "Lazy sparse stochastic gradient descent for regularized multinomial logistic regression";
Lipton and Elkan (2015), "Efficient elastic net regularization for sparse linear models", arXiv:1505.06449.
"""

from __future__ import annotations

ROWS = 3
"""`[P, S]`, `[sum(|w|), sum(w²)]`, `[age of these sums in steps, 0]`, as rows behind the stamps."""

PRODUCT, TOTAL, SUM_ABS, SUM_SQUARES, AGE = range(5)
"""Where each stands, of the six numbers."""

FRESH = (1.0, 0.0)
"""P and S after a flush."""

OLD = 2.0**53
"""The age of sums that were never computed: more steps than there are."""

UNTRACKED = -1.0
"""Stands for sum(|w|) while only sum(w²) is tracked."""

INITIAL = ((1.0, 0.0), (0.0, 0.0), (OLD, 0.0))
"""The state of a table whose rows are true."""

SMALLEST_PRODUCT = 1e-150
"""A table is flushed when P falls below: far from underflow, also of 1 / P."""

LARGEST_THRESHOLD = 64.0
"""A table is flushed when P · S, the shrink that a row not written since the last flush has to come, exceeds this. Its
rounding error is then about 1e-14, which is nothing beside weights of float32 and little beside those of float64."""

"""The state of a lazily regularised table, which its ops, native and plain, keep beside its rows.

A step with learning rate η shrinks every weight, `w ← sign(w) · max(0, a·|w| − b)`, with `a = 1 − 2·η·l2` and
`b = η·l1`. Zero is absorbing, so any number of such steps is one: with the running product `P = Π a` and the running
sum `S = Σ b / P` (P after that step), a weight that was last written when they were `P0` and `S0` now is

    sign(w) · max(0, (P / P0) · |w| − P · (S − S0))

P and S change with each step alike for all rows. So a table has a history, P and S of each step since the last flush,
and of each row a stamp, the number of the step in which it was last written: P0 and S0 are what the history has there.
Beside these it has some numbers, which are those of all rows. Stamps are float32, which GPUs keep where they compute,
while TensorFlow keeps variables of int32 with the processor; whole numbers below 2²⁴ are exact in it.

The penalty is tracked. With n weights that are not zero, a step makes of the sums of the others, up to those that
stop at zero in it,

    sum(|w|) ← a·sum(|w|) − b·n        sum(w²) ← a²·sum(w²) − 2·a·b·sum(|w|) + b²·n

and of the rows that it updates the change is known. Weights that have stopped at zero since the sums were last measured
go on shrinking in them, below zero, until their row is updated. What that amounts to is small while the threshold since
then, `P · (S − S at the measurement)`, is small beside the mean of |w|: with a density f of weights at zero, its share
of sum(|w|) is `f / 2 · threshold² / mean`, 5e-5 for a Laplace distribution at `LARGEST_SHARE`. The noise is a bound of
the rounding errors of sum(w²), which gradients that are huge for a moment leave behind.

Sources: Carpenter (2008), "Lazy sparse stochastic gradient descent for regularized multinomial logistic regression";
Lipton and Elkan (2015), "Efficient elastic net regularization for sparse linear models", arXiv:1505.06449.
"""

from __future__ import annotations

PRODUCT, TOTAL, STEP, SUM_ABS, SUM_SQUARES, COUNT, AGE, MEASURED, NOISE, FAULT, OF_FAULT = range(11)
"""The numbers of a table: P, S and the number of their step, sum(|w|), sum(w²), n, the age of these three in steps, S
at their measurement, the noise of sum(w²); a fault, and what it is of."""

NUMBERS = OF_FAULT + 1
"""How many there are."""

FRESH = (1.0, 0.0)
"""P and S after a flush, which is step 0."""

STEPS = 1 << 12
"""The length of a history: when it is full, the table is flushed. Of 64 KiB, it stays in the processor's cache, where
a longer one makes lookups slower; and in so many steps a pass over the table costs next to nothing."""

OLD = 2.0**53
"""The age of sums that were never computed: more steps than there are."""

INITIAL = (*FRESH, 0.0, 0.0, 0.0, 0.0, OLD, 0.0, 0.0, 0.0, 0.0)
"""The numbers of a table whose rows are true."""

LARGEST_SHARE = 0.01
"""The sums are measured anew when the threshold since the last time exceeds this share of the mean of |w|."""

LARGEST_NOISE = 1e-9
"""The same for the share of the noise in sum(w²)."""

EPSILON = 2.0**-52
"""Of the numbers that the sums are."""

NO_FAULT, INVALID_ID, INVALID_SHRINK = 0.0, 1.0, 2.0
"""What went wrong first in a step that cannot raise it: an id, or a shrink in the step of that number."""

SMALLEST_PRODUCT = 1e-150
"""A table is flushed when P falls below: far from underflow, also of 1 / P."""

LARGEST_THRESHOLD = 64.0
"""A table is flushed when P · S, the shrink that a row not written since the last flush has to come, exceeds this. Its
rounding error is then about 1e-14, which is nothing beside weights of float32 and little beside those of float64."""

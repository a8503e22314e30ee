"""otkd's transport solvers beside POT, geomloss and flash-sinkhorn, in one process.

A call is timed as training makes it, in float32: the value and its gradient in the points, from points to gradient.
Rounds alternate over all codes; figures are medians, ± half the interquartile range. What is the same for all codes:

Problem: points whose squared distances average 1, so that ε means the same with and without a normalisation. Peers that
take a cost matrix get the bare |x|² + |y|² − 2⟨x, y⟩; otkd normalises as it does in training.
Threads: as many for torch as for NumPy and whatever else brings its own (`--threads`).
Accuracy: every code runs until the L1 errors of both marginals add up to `TOLERANCE`. POT's `stopThr` bounds an L2
error and is set to TOLERANCE/√M, the loosest that can promise the same. geomloss and flash-sinkhorn have no stopping
rule: they get the smallest number of iterations that suffices, found beforehand; where none up to `MAX_ITERS` does, on
the smallest problem, they are timed at `FIXED_ITERS`. Who does not get there is marked ✗ and is not counted as the
fastest. A second table gives all the same number of iterations, checks included.
Value: each code's own number (POT's ⟨P, C⟩, the dual of the others) against the same number of the float64 solution.
Ratios: against the fastest peer that gives the gradient too. NumPy backends have none: the time of their value alone
stands in a column of its own.
Patience: who takes longer than 2 s is called once, who takes longer than 6 s or keeps more than 1 GiB for its
backward pass is given up, and neither is tried with more points, or with as many in as many dimensions or more.
Floor: the product x yᵀ and its backward pass alone, which no code on a cost matrix can do without.
Memory: peak of live tensors and arrays beyond what stood before, of otkd and of the fastest peer.
"""

"""The training engine beside its floor and beside a loop as public code bases have it, in one process.

A round is one call of every loop, each over the same number of images; figures are medians over rounds, so that a busy
spell of the machine hits all. What the loops are:

engine: `CohortTrainer`, as a sweep uses it: data, augmentation, metrics, look-out for divergence, one epoch a call.
floor: teacher forward, student forward and backward, optimizer step with the same objective on one fixed batch in
memory, in the engine's arithmetic and memory format, nothing counted. `plain` has the teacher as it was trained and the
optimizer as torch has it by default, `fast` has batch norm folded and the engine's optimizer.
classic: one method at a time; PIL images cropped, flipped and normalised one by one in two worker processes of a
DataLoader; fp32, torch's default memory format; loss and accuracy fetched by `.item()` in every step. Its objective is
otkd's, so that the loops alone differ. Workers start before the clock does.

All have the same number of threads. Networks have random weights; the teacher's batch norm has seen a few batches. The
learning rate is so small that nothing is learned. Before the clock starts the engine's first epoch is repeated on the
plain floor: the mean losses of both have to agree.
"""

"""Static analysis: kernels are compiled for GPUs that are not here, and their machine code is counted."""

"""Machine code: how its instructions follow each other, and the two instruction sets, NVIDIA's and AMD's."""

"""What makes the same numbers come sooner: kernels, graphs, quantised matrix products."""

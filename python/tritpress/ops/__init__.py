"""`torch.library` operators behind the modules: CPU runs the Rust kernels, other devices plain torch."""

//! The CPU: kernels on packed weights straight from the mapped file.

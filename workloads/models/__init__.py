"""The networks of the built-in workloads."""

"""The benchmark harness behind `fastreg bench` and `pytest benchmarks`."""

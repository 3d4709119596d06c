"""Random trainings with fastreg's penalties against the same ones with Keras's: `make soak MINUTES=30`, or
`python -m fastreg_benchmarks.soak`.
"""

"""The commands, such as `agsfl run`, and the paper's comparisons.

`python -m experiments.NAME` is `agsfl NAME`; see `experiments.main` for all of
them. `experiments.paper` has one more command for each comparison.
"""

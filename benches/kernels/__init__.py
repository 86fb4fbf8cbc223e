"""`dlm-bench kernels`: every op on every backend, against the ways people compute it today and against reading its inputs once.

`cases.py` says what a case is, one file per family of ops (`scoring.py`, `steps.py`, ...) has the cases and the rivals,
`timing.py` takes the times and the memory, `report.py` prints and writes them, `compare.py` compares two files.
"""

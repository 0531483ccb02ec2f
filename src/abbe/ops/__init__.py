"""Pure functions on packed tokens; `naive.py` has a slow, readable reference of each."""

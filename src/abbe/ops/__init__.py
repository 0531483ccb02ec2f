"""Pure functions on packed tokens; `naive.py` holds the slow, readable truth of each."""

"""One file for each verb of the command line: its options, what it calls, its exit code."""

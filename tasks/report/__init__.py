"""The report of one or more runs: pictures and one self-contained page."""

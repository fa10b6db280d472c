"""What the command line shows: numbers in words, progress bars, tables and the report at the end.

Everything here reads events, states and reports as plain dicts and draws with rich; nothing is measured here.
"""

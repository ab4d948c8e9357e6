"""Faults on purpose: after each a clear line, a state that can be gone on from, and the same scorecard.

Which fault is tested where, also those of other folders, is the table of docs/faults.md.
"""

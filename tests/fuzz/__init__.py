"""Fuzzing: whatever comes in from outside is read or refused with one line, never with another exception.

`targets` lists the readers of files and texts, `damage` says how sound examples are spoilt, `trial` does one.
The suite tries some hundred inputs with Hypothesis, always the same; `make fuzz` tries new ones for minutes.
"""

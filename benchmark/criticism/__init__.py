"""What the criticism track is made of: distances and choices of images, attributes, findings, slices.

Only `benchmark.criticism.distances` imports torch; all else is pure functions over arrays and tables.
"""

"""Models, images, records, the tracks and their statistics, and the `beyond` command line."""

"""What is published: entries, ranking and the static site, built from scorecards alone."""

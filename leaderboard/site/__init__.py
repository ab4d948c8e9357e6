"""The static site: one deterministic command turns entries into Markdown, JSON and assets beside `docs/`."""

"""People's judgements: label sets, where they come from, and how they are merged. Knows nothing of models."""

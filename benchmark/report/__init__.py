"""What people see of a scorecard: the terminal, one HTML page, and the names that both use."""

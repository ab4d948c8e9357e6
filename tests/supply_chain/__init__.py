"""What the project is made of: a lock with hashes for development, and a bill of materials for releases."""

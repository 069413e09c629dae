"""What the tests stand on: real workers and brokers, waiting for a condition, pages as data."""
